"""Separating spikes from a bulk: law and count, fitted in turn until they agree.

The spikes are removed, a law is fitted to the rest, and its edges, moved outwards by their
Tracy-Widom fluctuation, say which eigenvalues are spikes. Starting from the certain spikes alone
this finds the least fixed point. A few large eigenvalues can be read in two ways, as spikes or as
a small bulk of large variance; where one reading misfits, or is the longer one, the other is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hf_rmt.spectra.estimation import (
    ADEQUATE,
    SMALLEST_BULK,
    SMALLEST_SHARE,
    BulkEstimate,
    coarse_bulk,
    estimate_bulk,
    least_mixing,
)
from hf_rmt.spectra.laws import BulkLaw
from hf_rmt.spectra.marchenko_pastur import MarchenkoPastur
from hf_rmt.spectra.spike_map import Array
from hf_rmt.spectra.tracy_widom import tracy_widom_quantile

EDGE_CONFIDENCE = 0.999
"""A noise eigenvalue exceeds its finite-size edge with probability 1 - EDGE_CONFIDENCE."""
MAX_SPIKE_FRACTION = 1 / 6
"""More spikes than this are no outliers of a bulk; the iteration is cut there: heavy-tailed."""
MAX_GAP_FRACTION = 0.02
"""A gap of the law that holds more of the eigenvalues than this is no gap of the spectrum."""
EMPTY_BULK = 0.5
"""An upper interval of the law with less than this share of its mass in it is no bulk."""
START_QUANTILE, START_FACTOR = 0.9, 1.5
"""The start: a law of the lowest 90 %; what lies beyond 1.5 times its edge is surely a spike."""
MAX_ROUNDS = 100
ROUGH, FINE = 1e-2, 1e-9
"""Relative tolerance of the fit while the spikes still change, and of the last one."""
SMALL_BULK = 2
"""A bulk of less than this many times the least fraction may be spikes in truth."""
SMALL_SHARE = 0.2
"""So may a bulk of at most this fraction. The largest share of spikes lies a little below it."""
PINNED = 1.4
"""A bulk of less than this many times the least fraction would be smaller if it could."""
DISTINCT = 1.5
"""Ratio of variances below which a law is a unit bulk, whose mixing says nothing."""
BULK_SLACK = 1.15
"""How far, in units of their edge, eigenvalues that may form a bulk reach."""

Mask = NDArray[np.bool_]


class Estimator(Protocol):
    """Fits a law to noise eigenvalues, as `estimate_bulk` does."""

    def __call__(
        self, noise: Array, rows: int, *, start: BulkLaw | None, precision: float
    ) -> BulkEstimate:
        """Fit the law; a start nearby saves time."""
        ...


@dataclass(frozen=True)
class Separation:
    """One law for one choice of signal, and the signal that this law finds.

    Attributes:
        signal: The eigenvalues left out of the fit, shape (p,).
        estimate: The law of the others.
        found: The eigenvalues outside that law, shape (p,).
        converged: Whether both agree and the solver is content.
        reason: Why they cannot agree; empty where they do.
    """

    signal: Mask
    estimate: BulkEstimate
    found: Mask
    converged: bool = False
    reason: str = ""

    @property
    def adequate(self) -> bool:
        """Whether the law holds within the fluctuations of a random matrix."""
        return self.estimate.residual <= ADEQUATE


def separate(values: Array, rows: int) -> Separation:
    """Find the least self-consistent choice of spikes.

    Args:
        values: Eigenvalues, descending, not negative, shape (p,).
        rows: N.

    Returns:
        The fixed point, or with a reason the first round where the spikes run away.
    """
    result = _iterate(values, rows, _certain_spikes(values, rows))
    other = _other_reading(values, rows, result)
    if other is None:
        return result
    alternative = _iterate(values, rows, other)
    if not alternative.converged:
        return result
    adequate = result.converged and result.adequate and alternative.adequate
    if adequate and not _at_floor(result, len(values)):
        return min(result, alternative, key=lambda each: int(each.signal.sum()))
    if _at_floor(result, len(values)) and len(result.estimate.law.bulk_edges) > 1:
        handful = alternative.signal.sum() < SMALLEST_BULK
        return alternative if handful else result
    better = alternative.estimate.residual < result.estimate.residual
    return alternative if better or not result.converged else result


def most_spikes(count: int) -> float:
    """How many of `count` eigenvalues may be spikes before they count as running away.

    Args:
        count: Number of eigenvalues.

    Returns:
        A sixth of them, and in a small matrix as many as a bulk would need.
    """
    return max(MAX_SPIKE_FRACTION * count, min(float(SMALLEST_BULK), count / 4))


def finite_size_edges(law: BulkLaw, rows: int) -> Array:
    """Edges of the law moved outwards by their Tracy-Widom fluctuation, shape (intervals, 2).

    Args:
        law: The law of the noise.
        rows: N of the noise, without the spikes.

    Returns:
        The edges, ascending; the lowest may be negative.
    """
    quantile = tracy_widom_quantile(EDGE_CONFIDENCE)
    shifts = [
        [-law.edge_fluctuation(low, rows), law.edge_fluctuation(high, rows)]
        for low, high in law.critical_points.reshape(-1, 2)
    ]
    return law.bulk_edges + quantile * np.array(shifts)


def separate_by(estimator: Estimator, values: Array, rows: int) -> Separation:
    """Find a self-consistent choice of spikes for a law with one interval.

    The tail of a spread population can swallow spikes. Where the law misfits, the iteration also
    starts from the spikes of the double bulk, and the end with the smaller residual is taken.

    Args:
        estimator: Fits a law to noise eigenvalues, as `estimate_bulk` does.
        values: Eigenvalues, descending, not negative, shape (p,).
        rows: N.

    Returns:
        The fixed point, or with a reason the first round where the spikes run away.
    """
    result = _iterate(values, rows, _certain_spikes(values, rows), estimator)
    if result.converged and result.adequate:
        return result
    other = _iterate(values, rows, separate(values, rows).signal, estimator)
    if result.converged != other.converged:
        return result if result.converged else other
    return min(result, other, key=lambda each: each.estimate.residual)


def _iterate(
    values: Array, rows: int, signal: Mask, estimator: Estimator = estimate_bulk
) -> Separation:
    """Fit and count in turn to a fixed point, or report where that runs away."""
    limit = most_spikes(len(values))
    now = first = _round(estimator, values, rows, signal)
    seen: set[bytes] = set()
    precision = ROUGH
    while len(seen) < MAX_ROUNDS and now.found.sum() <= limit:
        seen.add(now.signal.tobytes())
        # in a cycle the law wavers over a border case: what was once signal then stays signal
        found = now.found | now.signal if now.found.tobytes() in seen else now.found
        if np.array_equal(found, now.signal):
            if precision == FINE:
                return Separation(now.signal, now.estimate, now.found, now.estimate.converged)
            precision = FINE
        now = _round(estimator, values, rows, found, now.estimate.law, precision)
    stands = first.found if first.found.sum() <= limit else first.signal
    last = _round(estimator, values, rows, stands, first.estimate.law, FINE)
    reason = f"the spikes run away: {int(now.found.sum())} of {len(values)} without end"
    return Separation(stands, last.estimate, now.found, reason=reason)


def _round(
    estimator: Estimator,
    values: Array,
    rows: int,
    signal: Mask,
    start: BulkLaw | None = None,
    precision: float = ROUGH,
) -> Separation:
    left = rows - int(signal.sum())
    estimate = estimator(values[~signal], left, start=start, precision=precision)
    return Separation(signal, estimate, _outside(values, estimate.law, left))


def _certain_spikes(values: Array, rows: int) -> Mask:
    """Eigenvalues that no bulk could hold: far beyond the edge of a law of the lower 90 %."""
    cut = int(np.ceil((1 - START_QUANTILE) * len(values)))
    certain = values > START_FACTOR * coarse_bulk(values[cut:], rows - cut).upper_edge
    # A law that leaves most of the spectrum outside is none, and the rest could not be fitted.
    return certain if certain.sum() <= len(values) // 2 else np.zeros_like(certain)


def _other_reading(values: Array, rows: int, result: Separation) -> Mask | None:
    """Spikes that lie like a bulk as noise, or a small misfitting bulk as spikes; None if neither.

    The eigenvalues of n dimensions of one variance reach up to (1 + sqrt(n / N))^2 times their
    mean, whatever lies below them.
    """
    law, floor = result.estimate.law, least_mixing(len(values))
    if not result.adequate or _at_floor(result, len(values)):
        beyond = values > MarchenkoPastur(float(law.atoms[0]), law.aspect_ratio).upper_edge
        small = law.weights[-1] <= max(SMALL_BULK * floor, SMALL_SHARE)
        return beyond if small and beyond.sum() <= len(values) // 2 else None
    group = values[result.found]
    for skip in range(len(group) - int(floor * len(values))):
        rest = group[skip:]
        if rest[0] <= BULK_SLACK * rest.mean() * (1 + np.sqrt(len(rest) / rows)) ** 2:
            return values > rest[0]
    return None


def _at_floor(result: Separation, count: int) -> bool:
    """Whether the upper bulk of a small matrix would be smaller still if it were allowed to.

    A bulk pinned to its least number of eigenvalues is spikes in truth, or it is very small; the
    residuals of the two readings decide.
    """
    law, floor = result.estimate.law, least_mixing(count)
    small = floor > SMALLEST_SHARE and law.weights[-1] <= PINNED * floor
    return bool(small and law.atoms[-1] > DISTINCT * law.atoms[0])


def _outside(values: Array, law: BulkLaw, rows: int) -> Mask:
    """Which eigenvalues lie above the bulk or in a true gap of it."""
    edges = finite_size_edges(law, rows)
    above = values > edges[-1, 1]
    if len(edges) == 1:
        return above
    beyond = values > edges[0, 1]
    if (beyond & ~above).sum() < EMPTY_BULK * law.weights[-1] * len(values):
        return beyond
    gap = beyond & (values < edges[1, 0])
    return above | gap if gap.sum() <= MAX_GAP_FRACTION * len(values) else above
