"""The eigenvalues of a weight: sorted, checked, and refused if no law can hold."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.spectra.laws.spike_map import Array

MIN_EIGENVALUES = 24
"""With fewer eigenvalues no law is fitted."""
MAX_NULL_FRACTION = 0.1
"""More zero eigenvalues than this mean a rank-deficient matrix, which no bulk describes."""
RELATIVE_ZERO = 1e-14
"""Eigenvalues up to this count as zero, in units of the largest one times their number."""
MOST_NEGATIVE = 1e-3
"""Negative eigenvalues from rounding are smaller than this part of the largest eigenvalue."""
RANGE = (1e-303, 1e304)
"""Range of the largest eigenvalue in which edges, variances and sums are float64 numbers. A law is
fitted in units of that eigenvalue, but its variances are squares of entries: for entries outside of
about 1e-152 to 1e151 these squares are not float64 numbers."""
COINCIDENT = 1e-5
"""Relative gap below which neighbours count as equal. Noise eigenvalues repel each other: among
4,000 of them about one pair in a thousand is that close."""
MAX_COINCIDENT = 0.5
"""A larger share of equal neighbours means that the matrix has few distinct singular values."""
NARROWEST = 0.5
"""Least relative variance of noise eigenvalues, in units of c. Theory says at least 1."""


def sorted_eigenvalues(eigenvalues: ArrayLike, shape: tuple[int, int]) -> Array:
    """The eigenvalues of a weight of this shape, descending.

    Raises:
        TypeError: If the shape is no pair of whole numbers.
        ValueError: If they do not fit the shape or are clearly negative.
    """
    sides = shape if isinstance(shape, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) for side in sides):
        raise TypeError(f"shape must be the two sides of the weight, whole numbers, got {shape!r}")
    columns, values = min(shape), np.asarray(eigenvalues, dtype=float)
    if values.shape != (columns,):
        raise ValueError(
            f"a weight of shape {tuple(shape)} has {columns} eigenvalues, got an array of shape "
            f"{values.shape}; pass the squared singular values"
        )
    values = np.sort(values)[::-1].copy()  # torch takes no view of it
    if columns and values[-1] < -MOST_NEGATIVE * values[0]:
        raise ValueError(
            f"eigenvalues of X'X cannot be negative, got {values[-1]:g} below the largest "
            f"{values[0]:g}; pass the squared singular values"
        )
    return values


def why_degenerate(values: Array) -> str:
    """Reason for which no law can be fitted to descending eigenvalues; empty if one can."""
    rank = live_count(values)
    if not np.all(np.isfinite(values)):
        return "the matrix holds nan or inf"
    if len(values) < MIN_EIGENVALUES:
        return f"{len(values)} eigenvalues, fewer than the {MIN_EIGENVALUES} a law needs"
    if values[0] <= 0:
        return "the matrix is zero"
    if not RANGE[0] <= values[0] <= RANGE[1]:
        return (
            f"the largest eigenvalue {values[0]:.3g} lies outside of {RANGE[0]:g} to {RANGE[1]:g}, "
            "where float64 is precise; scale the weight"
        )
    if rank < (1 - MAX_NULL_FRACTION) * len(values):
        return f"rank {rank} of {len(values)}: the matrix is low-rank already"
    return ""


def live_count(values: Array) -> int:
    """How many eigenvalues are larger than rounding errors."""
    return int(np.sum(values > RELATIVE_ZERO * len(values) * values[:1]))


def why_lawless(values: Array, rows: int) -> str:
    """Why descending eigenvalues cannot be those of noise; empty if they can.

    Noise with any population of variances tau has the relative variance c + Var(tau) / E(tau)^2, so
    at least c, and spikes only add to it. Also, the eigenvalues of noise repel each other.

    Args:
        values: Eigenvalues, descending, not degenerate, shape (p,).
        rows: N.

    Returns:
        The reason, or an empty string.

    Examples:
        >>> why_lawless(np.ones(30), 60)
        'all singular values are equal: an orthogonal matrix up to scale'
    """
    live = values[: live_count(values)]
    equal = live[:-1] - live[1:] <= COINCIDENT * live[1:]
    if equal.all():
        return "all singular values are equal: an orthogonal matrix up to scale"
    relative = live / live[0]
    spread = float(np.var(relative) / np.mean(relative) ** 2)
    least = len(live) / rows
    if spread < NARROWEST * least:
        return (
            f"the spectrum is narrower than that of noise, relative variance {spread:.2g} where "
            f"noise of this shape has at least {least:.2g}: nearer to orthogonal than any noise"
        )
    if equal.mean() > MAX_COINCIDENT:
        distinct = 1 + int(np.sum(~equal))
        return f"{len(live)} singular values have only {distinct} distinct values, unlike noise"
    return ""
