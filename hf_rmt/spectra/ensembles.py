"""Seeded random matrices for tests and benchmarks; theory describes their singular values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_rmt.spectra.laws.law import check_positive, check_unit
from hf_rmt.spectra.laws.spike_map import Array

Seed = int | np.random.Generator
"""The seed of the random numbers. A number gives the same matrix at every call. A NumPy generator
gives a new matrix at every call."""


def double_bulk_matrix(
    shape: tuple[int, int],
    *,
    mixing: float,
    variances: tuple[float, float],
    spikes: Sequence[float] = (),
    seed: Seed,
) -> Array:
    """Random matrix X = N^{-1/2} Z Sigma^{1/2} with noise of two variances and K spikes.

    Z has independent standard normal entries. Sigma is diagonal. Its diagonal holds the K spikes
    (the variances of the signal), then round(t (p - K)) entries of sigma_1^2, then entries of
    sigma_2^2. If the shape is wide, the transpose of X is returned.

    Args:
        shape: Shape of the matrix; N is the larger side, p the smaller one.
        mixing: t, the fraction of the noise with variance sigma_1^2, in [0, 1].
        variances: (sigma_1^2, sigma_2^2), both positive.
        spikes: The K spikes, which are the variances of the signal; at most p of them.
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The matrix, float64.

    Raises:
        ValueError: If an argument lies outside its range.

    Examples:
        >>> double_bulk_matrix((2, 3), mixing=0.5, variances=(4.0, 1.0), seed=0).shape
        (2, 3)
    """
    check_unit(
        "mixing",
        mixing,
        zero=True,
        remedy="pass the share of the noise that has variance sigma_1^2",
    )
    for variance in (*variances, *spikes):
        check_positive("variances and spikes", variance)
    columns = min(shape)
    bulk = columns - len(spikes)
    if bulk < 0:
        raise ValueError(
            f"a matrix of shape {tuple(shape)} can have at most {columns} spikes, got "
            f"{len(spikes)}; pass fewer"
        )
    upper = round(mixing * bulk)
    population = np.repeat(
        np.array([*spikes, *variances], float), [1] * len(spikes) + [upper, bulk - upper]
    )
    noise = np.random.default_rng(seed).standard_normal((max(shape), columns))
    return _oriented(noise * np.sqrt(population / max(shape)), shape)


def marchenko_pastur_matrix(
    shape: tuple[int, int], *, variance: float = 1.0, spikes: Sequence[float] = (), seed: Seed
) -> Array:
    """Random matrix whose noise has one variance; a signal is added, given by `spikes`.

    Args:
        shape: Shape of the matrix.
        variance: sigma^2 > 0, the variance of the noise.
        spikes: The variances of the signal, as in `double_bulk_matrix`.
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The matrix, float64.
    """
    return double_bulk_matrix(
        shape, mixing=0.0, variances=(variance, variance), spikes=spikes, seed=seed
    )


def heavy_tailed_matrix(shape: tuple[int, int], *, exponent: float, seed: Seed) -> Array:
    """Random matrix with heavy-tailed entries: P(|entry| > x) falls like x^{-exponent}.

    The entries are independent Student-t numbers, divided by sqrt(N), where N is the longer side.
    If the exponent is below 4, the largest singular values lie far above the interval that most of
    them fill. If it is below 2, there is no such interval.

    Args:
        shape: Shape of the matrix.
        exponent: Degrees of freedom of the Student-t distribution, > 0.
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The matrix, float64.

    Raises:
        ValueError: If the exponent is not positive.
    """
    check_positive("exponent", exponent)
    return np.random.default_rng(seed).standard_t(exponent, shape) / np.sqrt(max(shape))


def power_law_matrix(shape: tuple[int, int], *, exponent: float, seed: Seed) -> Array:
    """Matrix with random singular vectors and the singular values k^{-exponent}, k = 1 .. p.

    Here p is the shorter side. The singular values do not fill an interval as those of noise do.

    Args:
        shape: Shape of the matrix.
        exponent: Decay of the singular values, >= 0.
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The matrix, float64.
    """
    generator = np.random.default_rng(seed)
    left, right = (_orthonormal(side, min(shape), generator) for side in shape)
    return left * np.arange(1, min(shape) + 1.0) ** -exponent @ right.T


def low_rank_matrix(shape: tuple[int, int], *, rank: int, seed: Seed) -> Array:
    """Random matrix of a given rank: the product of two matrices with Gaussian entries.

    Args:
        shape: Shape of the matrix.
        rank: Number of columns of the left factor, in [0, min(shape)].
        seed: A number or a NumPy generator; see `Seed`.

    Returns:
        The matrix, float64.

    Raises:
        ValueError: If the rank lies outside its range.
    """
    if not 0 <= rank <= min(shape):
        raise ValueError(f"rank must lie in [0, {min(shape)}], got {rank}; pass one in this range")
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((shape[0], rank))
    return left @ generator.standard_normal((rank, shape[1])) / np.sqrt(max(shape))


def eigenvalues_of(weight: Array) -> Array:
    """Squared singular values, descending, shape (min(shape),), from one SVD.

    Args:
        weight: A matrix of any shape.

    Returns:
        The eigenvalues of X'X for the weight X, where X' is the transpose. The smallest ones are
        precise too.
    """
    return np.asarray(np.linalg.svd(weight, compute_uv=False) ** 2, float)


def _orthonormal(rows: int, columns: int, generator: np.random.Generator) -> Array:
    return np.asarray(np.linalg.qr(generator.standard_normal((rows, columns)))[0], float)


def _oriented(tall: Array, shape: tuple[int, int]) -> Array:
    return tall if shape[0] >= shape[1] else tall.T
