"""Sorts and checks the eigenvalues of a weight, and says why they cannot be those of noise.

A law is the distribution of eigenvalues that theory predicts for noise.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.spectra.laws.spike_map import Array

MIN_EIGENVALUES = 24
"""With fewer eigenvalues than this, no law (a predicted distribution of noise eigenvalues) is
fitted."""
MAX_NULL_FRACTION = 0.1
"""If a larger share of the eigenvalues than this is 0, the matrix has low rank, and no law (a
predicted distribution of noise eigenvalues) is fitted."""
RELATIVE_ZERO = 1e-14
"""An eigenvalue counts as 0 if it is at most this times the largest eigenvalue times the number of
eigenvalues."""
MOST_NEGATIVE = 1e-3
"""Rounding may make an eigenvalue negative, by at most this share of the largest eigenvalue."""
RANGE = (1e-303, 1e304)
"""Allowed range of the largest eigenvalue. Beyond this range, sums and variances that are computed
from the eigenvalues overflow or vanish in float64. An eigenvalue grows like the square of the
weight's entries, so the largest entry may lie within about 1e-152 to 1e151."""
COINCIDENT = 1e-5
"""Two neighbouring eigenvalues count as equal if their relative difference is at most this. Noise
eigenvalues are rarely so close: among 4,000 of them about one pair of neighbours in a thousand."""
MAX_COINCIDENT = 0.5
"""If a larger share of the pairs of neighbouring eigenvalues than this is equal, no law (the
distribution predicted for noise) is fitted: the matrix has too few distinct singular values."""
NARROWEST = 0.5
"""The relative variance of eigenvalues is Var / mean^2. For noise with N rows and p columns, theory
says that this variance is at least c = p / N. If the variance is below NARROWEST times c, the
eigenvalues cannot be noise."""


def sorted_eigenvalues(eigenvalues: ArrayLike, shape: tuple[int, int]) -> Array:
    """Check the eigenvalues of a weight of this shape, and return them in descending order.

    Raises:
        TypeError: If the shape is no pair of whole numbers.
        ValueError: If the eigenvalues do not fit the shape or are clearly negative.
    """
    sides = shape if isinstance(shape, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) for side in sides):
        raise TypeError(
            f"shape must be the two sides of the weight, whole numbers, got {shape!r}; pass "
            "weight.shape"
        )
    columns, values = min(shape), np.asarray(eigenvalues, dtype=float)
    if values.shape != (columns,):
        raise ValueError(
            f"a weight of shape {tuple(shape)} has {columns} eigenvalues, got an array of shape "
            f"{values.shape}; pass the squared singular values of the weight"
        )
    values = np.sort(values)[::-1].copy()  # torch takes no view of it
    if columns and values[-1] < -MOST_NEGATIVE * values[0]:
        raise ValueError(
            f"eigenvalues cannot be negative, got {values[-1]:g} as the smallest and "
            f"{values[0]:g} as the largest; pass the squared singular values of the weight"
        )
    return values


def why_degenerate(values: Array) -> str:
    """The reason why no noise law can be fitted to descending eigenvalues; empty if one can.

    A noise law is the distribution of eigenvalues that theory predicts for noise.
    """
    rank = live_count(values)
    if not np.all(np.isfinite(values)):
        return "the matrix holds nan or inf"
    if len(values) < MIN_EIGENVALUES:
        return f"{len(values)} eigenvalues, fewer than the {MIN_EIGENVALUES} that a law needs"
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
    """The number of eigenvalues that do not count as 0, for which see `RELATIVE_ZERO`.

    `values` are the eigenvalues; the largest is the first.
    """
    return int(np.sum(values > RELATIVE_ZERO * len(values) * values[:1]))


def why_lawless(values: Array, rows: int) -> str:
    """The reason why descending eigenvalues cannot come from noise; empty if they can.

    The relative variance of eigenvalues is their variance divided by their squared mean. Let noise
    have N rows and p columns. Let tau be the variance of a column; columns may differ in it. Then
    theory says that the relative variance is c + Var(tau) / E(tau)^2 with c = p / N, where E is the
    mean. So it is at least c, and a signal only increases it. Also, noise has hardly any equal
    eigenvalues.

    Args:
        values: Eigenvalues, descending, for which `why_degenerate` is empty, shape (p,).
        rows: N, the longer side of the weight.

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
            f"the spectrum is narrower than that of noise: its relative variance is {spread:.2g}, "
            f"where noise has at least {least:.2g}; the matrix is nearly orthogonal"
        )
    if equal.mean() > MAX_COINCIDENT:
        distinct = 1 + int(np.sum(~equal))
        return f"{len(live)} singular values have only {distinct} distinct values, unlike noise"
    return ""
