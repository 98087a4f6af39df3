"""Separates spikes from a bulk: fits the law and counts the spikes in turn until both agree.

The spikes are removed and a law is fitted to the rest. The edges of this law are moved outwards by
their Tracy-Widom fluctuation (the distance that chance explains). The eigenvalues beyond the moved
edges are the new spikes. The iteration starts from eigenvalues that are certainly spikes, so it
finds no more spikes than needed. A few large eigenvalues can be read in two ways: as spikes, or as
a small bulk of large variance. If the first reading is doubtful, the other reading is tried. The
first reading is doubtful if it does not fit, if its small bulk has the least size allowed, or if
its spikes are as close to each other as the eigenvalues of a bulk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hf_rmt.spectra.fits.estimation import (
    ADEQUATE,
    SMALLEST_BULK,
    SMALLEST_SHARE,
    BulkEstimate,
    coarse_bulk,
    estimate_bulk,
    least_mixing,
)
from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.marchenko_pastur import MarchenkoPastur
from hf_rmt.spectra.laws.spike_map import Array
from hf_rmt.spectra.laws.tracy_widom import tracy_widom_quantile

EDGE_CONFIDENCE = 0.999
"""With this probability, the largest noise eigenvalue lies below the edge of
`finite_size_edges`."""
MAX_SPIKE_FRACTION = 1 / 6
"""If a larger share of the eigenvalues are spikes, the iteration stops, and the phase is
heavy-tailed. `most_spikes` allows more in a small matrix."""
MAX_GAP_FRACTION = 0.02
"""If a gap of the law holds a larger share of the eigenvalues, it does not count as a gap."""
EMPTY_BULK = 0.5
"""The upper interval of a law counts as a bulk only if it holds at least this share of the
eigenvalues that the law puts there."""
START_QUANTILE, START_FACTOR = 0.9, 1.5
"""At the start, a law is fitted to the lowest 90 % of the eigenvalues. Eigenvalues above 1.5 times
its edge are certainly spikes."""
MAX_ROUNDS = 100
ROUGH, FINE = 1e-2, 1e-9
"""Relative tolerances of a fit: ROUGH while the spikes still change, FINE for the last fit."""
SMALL_BULK = 2
"""A bulk of at most this many times the fraction `least_mixing` may really consist of spikes."""
SMALL_SHARE = 0.2
"""A bulk that holds at most this fraction of the noise may also consist of spikes."""
PINNED = 1.4
"""If the fraction of a bulk is at most this times `least_mixing`, the bulk would be smaller without
this limit on its size."""
DISTINCT = 1.5
"""If the ratio of its two variances is at most this, a law counts as a unit bulk (one variance),
and its mixing has no meaning."""
BULK_SLACK = 1.15
"""Spikes may form a bulk if the largest one is at most this many times the edge that this bulk
would have."""

Mask = NDArray[np.bool_]


class Estimator(Protocol):
    """Fits a law to noise eigenvalues, as `estimate_bulk` does."""

    def __call__(
        self, noise: Array, rows: int, *, start: BulkLaw | None, precision: float
    ) -> BulkEstimate:
        """Fit the law. A `start` near the solution saves time."""
        ...


@dataclass(frozen=True)
class Separation:
    """A choice of signal, the law of the other eigenvalues, and the signal that this law finds.

    Attributes:
        signal: Which eigenvalues were left out of the fit, shape (p,).
        estimate: The law of the remaining eigenvalues.
        found: Which eigenvalues lie outside the bulk of this law, shape (p,).
        converged: Whether `signal` and `found` agree and the solver converged.
        reason: Why `signal` and `found` do not agree; empty if they agree.
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
    """Find the fewest spikes for which a double bulk, fitted to the rest, finds the same spikes.

    Args:
        values: Eigenvalues, descending, not negative, shape (p,).
        rows: N, the longer side of the weight.

    Returns:
        The spikes and the law of the rest. If the number of spikes keeps growing, these are the
        spikes of the first round, with a reason.
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
    """How many of `count` eigenvalues may be spikes; if there are more, the iteration stops.

    Args:
        count: Number of eigenvalues.

    Returns:
        A sixth of them. With fewer than 48 eigenvalues it is 8, the least size of a bulk, but not
        more than a quarter of them.
    """
    return max(MAX_SPIKE_FRACTION * count, min(float(SMALLEST_BULK), count / 4))


def finite_size_edges(law: BulkLaw, rows: int) -> Array:
    """The edges of a law, moved outwards by the distance that chance explains.

    Args:
        law: The law of the noise.
        rows: The number of rows of the noise: N minus the number of spikes.

    Returns:
        The edges with their Tracy-Widom fluctuation, ascending, shape (intervals, 2). The lowest
        one may be negative.
    """
    quantile = tracy_widom_quantile(EDGE_CONFIDENCE)
    shifts = [
        [-law.edge_fluctuation(low, rows), law.edge_fluctuation(high, rows)]
        for low, high in law.critical_points.reshape(-1, 2)
    ]
    return law.bulk_edges + quantile * np.array(shifts)


def separate_by(estimator: Estimator, values: Array, rows: int) -> Separation:
    """Find spikes as `separate` does, but for a law with one interval instead of the double bulk.

    A law with a wide range of variances has a long tail, which can hide spikes. If the first result
    did not converge or does not fit, the iteration also starts from the spikes of the double bulk.
    If only one of the two results converged, it is taken. If both or none converged, the one with
    the smaller residual is taken.

    Args:
        estimator: Fits a law to noise eigenvalues, as `estimate_bulk` does.
        values: Eigenvalues, descending, not negative, shape (p,).
        rows: N, the longer side of the weight.

    Returns:
        The spikes and the law of the rest. If the number of spikes keeps growing, these are the
        spikes of the first round, with a reason.
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
    """Fit and count in turn until nothing changes, or give a reason if the spikes keep growing."""
    limit = most_spikes(len(values))
    now = first = _round(estimator, values, rows, signal)
    seen: set[bytes] = set()
    precision = ROUGH
    while len(seen) < MAX_ROUNDS and now.found.sum() <= limit:
        seen.add(now.signal.tobytes())
        # if the iteration cycles over a border case, the present signal stays signal
        found = now.found | now.signal if now.found.tobytes() in seen else now.found
        if np.array_equal(found, now.signal):
            if precision == FINE:
                return Separation(now.signal, now.estimate, now.found, now.estimate.converged)
            precision = FINE
        now = _round(estimator, values, rows, found, now.estimate.law, precision)
    stands = first.found if first.found.sum() <= limit else first.signal
    last = _round(estimator, values, rows, stands, first.estimate.law, FINE)
    reason = f"the number of spikes keeps growing: {int(now.found.sum())} of {len(values)}"
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
    """Eigenvalues that are certainly spikes: far beyond the edge of a law of the lower 90 %."""
    cut = int(np.ceil((1 - START_QUANTILE) * len(values)))
    certain = values > START_FACTOR * coarse_bulk(values[cut:], rows - cut).upper_edge
    # If more than half of the values lie outside, the law is wrong, and too few are left to fit.
    return certain if certain.sum() <= len(values) // 2 else np.zeros_like(certain)


def _other_reading(values: Array, rows: int, result: Separation) -> Mask | None:
    """The signal if a small bulk is read as spikes, or spikes as a bulk; None if there is neither.

    The n eigenvalues of a bulk of one variance reach up to (1 + sqrt(n / N))^2 times their mean,
    whatever lies below them.
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
    """Whether the upper bulk of a small matrix would be smaller without the limit on its size.

    Such a bulk may really be spikes. If the law has a gap, it is read as spikes only if there are
    then fewer than 8 spikes. If the law has no gap, the residuals of the two readings decide.
    """
    law, floor = result.estimate.law, least_mixing(count)
    small = floor > SMALLEST_SHARE and law.weights[-1] <= PINNED * floor
    return bool(small and law.atoms[-1] > DISTINCT * law.atoms[0])


def _outside(values: Array, law: BulkLaw, rows: int) -> Mask:
    """Which eigenvalues lie above the bulk or in a real gap between two parts of the bulk."""
    edges = finite_size_edges(law, rows)
    above = values > edges[-1, 1]
    if len(edges) == 1:
        return above
    beyond = values > edges[0, 1]
    if (beyond & ~above).sum() < EMPTY_BULK * law.weights[-1] * len(values):
        return beyond
    gap = beyond & (values < edges[1, 0])
    return above | gap if gap.sum() <= MAX_GAP_FRACTION * len(values) else above
