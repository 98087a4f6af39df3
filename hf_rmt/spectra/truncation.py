"""Splits spectra without theory: the user sets how many singular values count as signal."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.checks import check_integer, check_number
from hf_rmt.spectra.eigenvalues import sorted_eigenvalues
from hf_rmt.spectra.split import Phase, SpectrumFit, without_law


def truncate(
    eigenvalues: ArrayLike,
    shape: tuple[int, int],
    *,
    rank: int | None = None,
    energy: float | None = None,
    fraction: float | None = None,
) -> SpectrumFit:
    """Count the largest singular values of a weight as signal (truncated SVD).

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        rank: How many singular values to keep, at least 1; all of them if there are fewer.
        energy: Keep the fewest singular values whose squares sum to this share of the squared
            Frobenius norm, in (0, 1].
        fraction: Keep this share of all min(shape) singular values, in (0, 1]. The number is
            rounded, and at least 1.

    Returns:
        A fit without a law (a predicted distribution of noise eigenvalues). The verdict `phase` is
        `no law`, or `degenerate` if the matrix is zero or not finite.

    Raises:
        TypeError: If the rank is no whole number, or energy or fraction is no number.
        ValueError: If not exactly one of rank, energy and fraction is given, if the one given lies
            outside its range, or if the eigenvalues do not fit the shape.

    Source:
        Eckart & Young, Psychometrika 1 (1936).

    Examples:
        >>> truncate([4.0, 3.0, 2.0, 1.0], (6, 4), energy=0.7).n_spikes
        2
    """
    if sum(option is not None for option in (rank, energy, fraction)) != 1:
        raise ValueError(
            f"exactly one of rank, energy and fraction must be set, got rank={rank}, "
            f"energy={energy}, fraction={fraction}; set one of them"
        )
    count = 0 if rank is None else check_integer("rank", rank, 1)
    for name, share in (("energy", energy), ("fraction", fraction)):
        if share is not None:
            check_number(name, share, "(0", "1]")
    fit = unsplit(eigenvalues, shape)
    if fit.phase == Phase.DEGENERATE:
        return fit
    values = fit.eigenvalues
    if fraction is not None:
        count = max(1, round(fraction * len(values)))
    if energy is not None:
        count = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), energy))
    return without_law(shape, values, n_signal=count, phase=fit.phase)


def unsplit(eigenvalues: ArrayLike, shape: tuple[int, int]) -> SpectrumFit:
    """A fit that counts no singular value as signal, for methods that do not use singular values.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.

    Returns:
        A fit without a law (a predicted distribution of noise eigenvalues) and without signal.

    Raises:
        ValueError: If the eigenvalues do not fit the shape.

    Examples:
        >>> str(unsplit([2.0, 1.0], (3, 2)).phase)
        'no law'
    """
    values = sorted_eigenvalues(eigenvalues, shape)
    if not np.all(np.isfinite(values)):
        return without_law(shape, values, "the matrix holds nan or inf")
    if not values.any():
        return without_law(shape, values, "the matrix is zero")
    return without_law(shape, np.maximum(values, 0.0), phase=Phase.LAWLESS)
