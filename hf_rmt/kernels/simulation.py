"""Wide random networks, for comparison with the theory."""

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
"""A generator gives another network at every draw; a number gives the same network every time."""

BLOCK = 2048
STEP = 1e-5


def gaussian_mixture(
    shape: tuple[int, int], *, mean_norm: float = 2.0, classes: int = 2, seed: Seed
) -> tuple[Array, NDArray[np.int64]]:
    """x_i = (mu_a + z_i) / sqrt p with |mu_a| = mean_norm, z_i standard normal: tau_0 near 1.

    Two classes have opposite means; the means of more classes have independent directions.

    Args:
        shape: (samples, features).
        mean_norm: Norm of the means before the division by sqrt p.
        classes: Number of classes, which have the same size.
        seed: Number or generator.

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
    """Iid entries of mean 0 and variance 1: 0 with probability sparsity, otherwise +a or -a.

    Args:
        shape: Of the matrix.
        sparsity: In [0, 1).
        seed: Number or generator.

    Returns:
        The matrix; its nonzero entries are +-a with a = 1 / sqrt(1 - sparsity).

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
    """CK and NTK of one random network f = w's_L(W_L ... s_1(W_1 x)) / sqrt d, all layers d wide.

    A Gaussian layer depends on the layers below only through their Gram matrix. So only this matrix
    is kept, and the width can be larger than the memory allows. The NTK is K_l + NTK_{l-1} o (mean
    of s'(u) s'(v) over the layer).

    Args:
        data: Inputs of the first layer, shape (samples, features).
        activations: One for each hidden layer; they are centred here, at the scales that follow
            from tau.
        width: d.
        tau: tau_0, as for `exact_kernels`.
        sparsity: Sparsity of ternary weights, for which the outputs of a whole layer are kept in
            memory; None for Gaussian weights.
        tangent: Whether to compute the NTK; its slopes are central differences.
        seed: Number or generator.

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
