"""The second-order statistics of a Gaussian mixture: norms of inputs and traces of covariances.

They enter the formulas for kernels: matrices that compare each two inputs of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.kernels.activations import Array


@dataclass(frozen=True)
class MixtureStatistics:
    """Second-order statistics of n inputs x_i from a Gaussian mixture of K classes.

    The inputs have p features. In class a, sqrt(p) x_i is normal with mean mu_a and covariance C_a.

    Args:
        tau: tau_0, the square root of the mean of tr C_a / p over the inputs.
        classes: J, shape (n, K). Its entry (i, a) is 1 if input i is in class a, and otherwise 0.
        traces: t, shape (K,). Its entries are tr(C_a - C) / sqrt p, where C is the mean covariance.
        products: T, shape (K, K). Its entries are tr(C_a C_b) / p.
        psi: |x_i|^2 minus the mean of |x|^2 in the class of input i, shape (n,).
    """

    tau: float
    classes: Array
    traces: Array
    products: Array
    psi: Array


def mixture_statistics(
    data: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    covariances: Sequence[ArrayLike] | None = None,
) -> MixtureStatistics:
    """Statistics of a mixture, from its covariances if they are given, otherwise from the data.

    Class a has the mean mu_a and the covariance C_a, as in `MixtureStatistics`. From the data,
    tr C_a / p is estimated by the mean of |x_i|^2 over class a, and tr(C_a C_b) / p by the mean of
    p (x_i'x_j)^2 over i in class a and j != i in class b. The class means mu_a cause an error of
    order 1/p in both estimates.

    Args:
        data: Inputs divided by sqrt p, shape (samples, features).
        labels: Class of each input; None for one class.
        covariances: The C_a in the order of the sorted labels; None estimates them from the data.

    Returns:
        The statistics.

    Raises:
        ValueError: If the shapes do not fit, or a class has fewer than two inputs.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((50, 2000)) / 2000**0.5
        >>> mixture_statistics(x, covariances=[np.eye(2000)]).products
        array([[1.]])
    """
    inputs = check_data(data)
    n, p = inputs.shape
    members = np.zeros(n, int)
    if labels is not None:
        members = np.unique(np.asarray(labels), return_inverse=True)[1]
    if members.shape != (n,):
        raise ValueError(
            f"labels must have shape ({n},), got {members.shape}; pass one label for each input"
        )
    counts = np.bincount(members)
    if counts.min() < 2:
        raise ValueError(
            f"every class must have at least 2 inputs, got a class with {counts.min()}; merge the "
            "smallest classes"
        )
    classes = np.eye(len(counts))[members]
    norms = (inputs**2).sum(1)
    if covariances is None:
        means, products = classes.T @ norms / counts, _products(inputs, classes)
    else:
        means, products = _from_covariances(covariances, len(counts), p)
    total = float(counts @ means / n)
    return MixtureStatistics(
        np.sqrt(total), classes, (means - total) * np.sqrt(p), products, norms - classes @ means
    )


def _products(inputs: Array, classes: Array) -> Array:
    squares = (inputs @ inputs.T) ** 2
    np.fill_diagonal(squares, 0.0)
    counts = classes.sum(0)
    pairs = np.outer(counts, counts) - np.diag(counts)
    return np.asarray(inputs.shape[1] * (classes.T @ squares @ classes) / pairs)


def _from_covariances(
    covariances: Sequence[ArrayLike], count: int, features: int
) -> tuple[Array, Array]:
    stacked = np.asarray(covariances, float)
    if stacked.shape != (count, features, features):
        raise ValueError(
            f"covariances must have shape {(count, features, features)}, got {stacked.shape}; pass "
            "one for each class"
        )
    means = np.trace(stacked, axis1=1, axis2=2) / features
    return means, np.einsum("aij,bji->ab", stacked, stacked) / features


def root_mean_square(inputs: Array) -> float:
    """The square root of the mean of |x|^2 over the inputs x.

    It estimates tau_0, the scale of the inputs in `MixtureStatistics`, from the data.
    """
    return float(np.sqrt((inputs**2).sum(1).mean()))


def check_data(data: ArrayLike) -> Array:
    """The inputs as a float64 matrix; an error if they are no matrix, not finite, or empty."""
    inputs = np.asarray(data, float)
    if inputs.ndim != 2 or not np.isfinite(inputs).all():
        raise ValueError(
            f"data must be a finite matrix (samples, features), got shape {inputs.shape}; reshape "
            "it and remove samples with nan or inf"
        )
    if not inputs.size:
        raise ValueError(
            f"data must hold at least one sample and one feature, got shape {inputs.shape}; pass "
            "inputs"
        )
    return inputs
