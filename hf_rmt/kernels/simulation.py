"""Draws inputs and weights of wide random networks, and computes the kernels of such networks.

A kernel is a matrix that compares the inputs of a network. The results check the formulas for
kernels in `hf_rmt.kernels.equivalents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.kernels.activations import Activation, Array, Function, resolve_activation
from hf_rmt.kernels.equivalents import layer_moments
from hf_rmt.kernels.exact import Kernels
from hf_rmt.kernels.statistics import check_data, root_mean_square

Seed = int | np.random.Generator
"""The seed of the random numbers. A number gives the same network at every call. A NumPy generator
gives a new network at every call."""

BLOCK = 2048
STEP = 1e-5


def gaussian_mixture(
    shape: tuple[int, int], *, mean_norm: float = 2.0, classes: int = 2, seed: Seed
) -> tuple[Array, NDArray[np.int64]]:
    """Inputs from a Gaussian mixture, divided by sqrt p: x_i = (mu_a + z_i) / sqrt p in class a.

    The inputs have p features. The mean mu_a of class a has the norm `mean_norm`, and z_i is
    standard normal, so that tau_0, the root mean square norm of the inputs, is near 1. Two classes
    have opposite means; the means of more classes have independent directions.

    Args:
        shape: Shape of the inputs, (samples, features).
        mean_norm: Norm of the means before the division by sqrt p.
        classes: Number of classes, which have the same size.
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The inputs and their labels.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(shape[0]) * classes // shape[0]
    means = generator.standard_normal((classes, shape[1]))
    if classes == 2:
        means[1] = -means[0]
    means *= mean_norm / np.linalg.norm(means, axis=1, keepdims=True)
    return (means[labels] + generator.standard_normal(shape)) / np.sqrt(shape[1]), labels


def ternary_weights(shape: tuple[int, int], *, sparsity: float, seed: Seed) -> Array:
    """Random matrix of entries 0, a and -a, independent, of mean 0 and variance 1.

    Args:
        shape: Shape of the matrix.
        sparsity: Probability that an entry is 0, in [0, 1).
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The matrix; its nonzero entries are a and -a with a = 1 / sqrt(1 - sparsity).

    Raises:
        ValueError: If the sparsity lies outside its range.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}; it is P(weight = 0)")
    draws = np.random.default_rng(seed).random(shape)
    kept = (1 - sparsity) / 2
    signs = (draws < kept).astype(float) - (draws >= 1 - kept)
    return signs / np.sqrt(1 - sparsity)


def simulated_kernels(
    data: ArrayLike,
    activations: Sequence[Activation],
    *,
    width: int,
    tau: float | None = None,
    sparsity: float | None = None,
    tangent: bool = False,
    seed: Seed,
) -> Kernels:
    """Conjugate kernel and neural tangent kernel (NTK) of one random network.

    Both are Gram matrices: the first of the outputs of the last hidden layer, the second of the
    gradients. The network is f(x) = w . s_L(W_L ... s_1(W_1 x)), with random weights w and W_l and
    activations s_l (the dot is the inner product). All layers have the width d, and every s_l is
    divided by sqrt d.

    A Gaussian layer depends on the layers below only through their Gram matrix. So only this matrix
    is kept in memory, and the outputs of a wide layer need not fit there. The NTK of layer l is K_l
    + NTK_{l-1} o S. Here K_l is the conjugate kernel of layer l, o is the entrywise product, and S
    is the mean of s'(u) s'(v) over the units of the layer. There u and v are the arguments of s for
    two inputs, and s' is the slope of s.

    Args:
        data: Inputs of the first layer, shape (samples, features).
        activations: One activation for each hidden layer. Its mean over normally distributed
            arguments is subtracted here; their scale follows from `tau`.
        width: The width d of every layer.
        tau: tau_0, the scale of the inputs, as for `exact_kernels`.
        sparsity: Share of zeros of ternary weights; None for Gaussian weights. With ternary
            weights, the outputs of a whole layer are kept in memory.
        tangent: Whether to compute the NTK; the slopes s' are found by central differences.
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The kernels of the last layer.
    """
    generator = np.random.default_rng(seed)
    inputs = check_data(data)
    hidden, ntk = inputs.T, inputs @ inputs.T
    for function in _centred(activations, root_mean_square(inputs) if tau is None else tau):
        conjugate, slopes = np.zeros_like(ntk), np.zeros_like(ntk)
        features = []
        for arguments in _preactivations(hidden, width, sparsity, generator):
            features.append(function(arguments) / np.sqrt(width))
            conjugate += features[-1].T @ features[-1]
            if tangent:
                slope = (function(arguments + STEP) - function(arguments - STEP)) / (2 * STEP)
                slopes += slope.T @ slope / width
            if sparsity is None:
                features.clear()
        ntk = conjugate + ntk * slopes
        hidden = _square_root(conjugate) if sparsity is None else np.concatenate(features)
    return Kernels(conjugate, ntk if tangent else None)


def _centred(activations: Sequence[Activation], tau: float) -> list[Function]:
    moments = layer_moments(activations, tau=tau)
    pairs = zip(map(resolve_activation, activations), moments, strict=True)
    return [partial(_shifted, function, layer.m0) for function, layer in pairs]


def _shifted(function: Function, mean: float, x: Array) -> Array:
    return np.asarray(function(x) - mean)


def _weights(
    shape: tuple[int, int], sparsity: float | None, generator: np.random.Generator
) -> Array:
    if sparsity is None:
        return generator.standard_normal(shape)
    return ternary_weights(shape, sparsity=sparsity, seed=generator)


def _preactivations(
    hidden: Array, width: int, sparsity: float | None, generator: np.random.Generator
) -> Iterator[Array]:
    for start in range(0, width, BLOCK):
        rows = min(BLOCK, width - start)
        yield _weights((rows, len(hidden)), sparsity, generator) @ hidden


def _square_root(gram: Array) -> Array:
    eigenvalues, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(eigenvalues, 0.0))[:, None] * vectors.T
