"""Separates spikes (signal eigenvalues) from a bulk (the range of noise eigenvalues).

The spikes are removed, and a law, the density of eigenvalues that theory predicts for noise, is
fitted to the rest. The edges (the ends) of this law are moved outwards by their Tracy-Widom
fluctuation (the distance that chance explains). The eigenvalues beyond the moved edges are the new
spikes. This is repeated until law and spikes agree. The iteration starts from eigenvalues that are
certainly spikes, so it finds no more spikes than needed. A few large eigenvalues can be read in two
ways: as spikes, or as a small bulk of large variance. The iteration finds one reading. The other is
tried if the result is doubtful: if the law does not fit, if its bulk of larger variance is as
small as a fit allows, or if the spikes are as close to each other as the eigenvalues of a bulk.
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
"""With this probability, the largest noise eigenvalue lies below the largest of the limits that
`finite_size_edges` gives."""
MAX_SPIKE_FRACTION = 1 / 6
"""If a larger share of the eigenvalues than this are spikes (signal), the iteration stops, and the
verdict is `heavy-tailed`. `most_spikes` allows more in a small matrix."""
MAX_GAP_FRACTION = 0.02
"""A gap between two intervals of noise does not count as a gap if it holds a larger share of the
eigenvalues than this."""
EMPTY_BULK = 0.5
"""If a fit predicts two intervals of noise eigenvalues, the upper one counts as noise only if it
holds at least this share of the eigenvalues that the fit puts there."""
START_QUANTILE, START_FACTOR = 0.9, 1.5
"""At the start, a law of noise is fitted to the lowest 90 % of the eigenvalues. Eigenvalues above
1.5 times the upper end of this law are certainly spikes (signal)."""
MAX_ROUNDS = 100
ROUGH, FINE = 1e-2, 1e-9
"""Relative tolerances of a fit: ROUGH while the spikes (the signal) still change, FINE for the last
fit."""
SMALL_BULK = 2
"""If the fraction of noise that has the larger variance is at most this many times `least_mixing`,
this part of the noise may in fact be signal."""
SMALL_SHARE = 0.2
"""If the fraction of noise that has the larger variance is at most this, this part of the noise may
also be signal."""
PINNED = 1.4
"""The fraction of noise that has the larger variance cannot fall below `least_mixing`. If it is at
most this times `least_mixing`, it would probably be smaller without this limit."""
DISTINCT = 1.5
"""If the ratio of two noise variances is at most this, they count as one variance, and the fraction
of each has no meaning."""
BULK_SLACK = 1.15
"""Large eigenvalues may be noise of a larger variance if the largest one is at most this many times
the largest eigenvalue that such noise would have."""

Mask = NDArray[np.bool_]


class Estimator(Protocol):
    """Type of functions that, like `estimate_bulk`, fit a law (a density) to noise eigenvalues."""

    def __call__(
        self, noise: Array, rows: int, *, start: BulkLaw | None, precision: float
    ) -> BulkEstimate:
        """Fit a law (predicted density) to `noise`; the arguments are those of `estimate_bulk`."""
        ...


@dataclass(frozen=True)
class Separation:
    """The result of one split of eigenvalues into signal and noise, with the law of the noise.

    A law is the density that theory predicts for noise eigenvalues; see `hf_rmt.spectra`.

    Attributes:
        signal: Which of the p eigenvalues were left out of the fit, shape (p,).
        estimate: The law of the remaining eigenvalues.
        found: Which of all p eigenvalues lie outside of the range of this law, shape (p,).
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
        """Whether the law fits the noise eigenvalues: the residual is at most `ADEQUATE`."""
        return self.estimate.residual <= ADEQUATE


def separate(values: Array, rows: int) -> Separation:
    """Split eigenvalues into spikes (signal) and a double bulk (noise of two variances).

    The noise is fitted to all eigenvalues but the spikes. The spikes must be exactly the
    eigenvalues outside of the range of this noise. If several sets of spikes meet this condition,
    the smallest set is wanted.

    Args:
        values: Eigenvalues, descending, not negative, shape (p,).
        rows: N, the longer side of the weight.

    Returns:
        The spikes, and the law (density) of the rest, found in rounds. If each round finds more
        spikes, the result is that of the first round, and its `reason` says so.
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
    # with a gap in the noise, fewer than 8 eigenvalues are signal; without one, residuals decide
    if _at_floor(result, len(values)) and len(result.estimate.law.bulk_edges) > 1:
        handful = alternative.signal.sum() < SMALLEST_BULK
        return alternative if handful else result
    better = alternative.estimate.residual < result.estimate.residual
    return alternative if better or not result.converged else result


def most_spikes(count: int) -> float:
    """How many of `count` eigenvalues may be spikes (signal); with more, `separate` stops.

    Args:
        count: Number of eigenvalues.

    Returns:
        A sixth of the eigenvalues. With fewer than 48 eigenvalues it is 8, or a quarter of them if
        that is less.
    """
    return max(MAX_SPIKE_FRACTION * count, min(float(SMALLEST_BULK), count / 4))


def finite_size_edges(law: BulkLaw, rows: int) -> Array:
    """The edges of a law, moved outwards by the distance that chance explains.

    The edges are the ends of the intervals that noise eigenvalues fill.

    Args:
        law: The law of the noise, the predicted density of its eigenvalues.
        rows: The number of rows of the noise: those of the weight minus the number of spikes
            (signal eigenvalues).

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
    """Find spikes as `separate` does, but with another law than the double bulk.

    Spikes are signal eigenvalues. A law is a predicted density of noise eigenvalues. The double
    bulk is the law of noise with two variances, and `estimator` fits a law with any variances. If
    these have a wide range, the long tail of the law can hide spikes. So if the first result did
    not converge or does not fit, the iteration also starts from the spikes of the double bulk. If
    only one of the two results converged, this one is taken. If both or none converged, the one
    with the smaller residual is taken.

    Args:
        estimator: Fits a law to noise eigenvalues, as `estimate_bulk` does.
        values: Eigenvalues, descending, not negative, shape (p,).
        rows: N, the longer side of the weight.

    Returns:
        The spikes, and the law (density) of the rest, found in rounds. If each round finds more
        spikes, the result is that of the first round, and its `reason` says so.
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
    """Fit a law (density) to the noise and find the signal by it, in turn, until nothing changes.

    `signal` marks the signal of the first round. If the signal keeps growing, the result of this
    round is returned, with a reason.
    """
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
    """Mark the eigenvalues that are certainly signal: far above noise fitted to the lowest 90 %."""
    cut = int(np.ceil((1 - START_QUANTILE) * len(values)))
    certain = values > START_FACTOR * coarse_bulk(values[cut:], rows - cut).upper_edge
    # If more than half of the values lie outside, the law is wrong, and too few are left to fit.
    return certain if certain.sum() <= len(values) // 2 else np.zeros_like(certain)


def _other_reading(values: Array, rows: int, result: Separation) -> Mask | None:
    """Mark other eigenvalues as signal than `result` does; None if no other choice makes sense.

    The noise of `result` has two variances. If the fit is bad or `_at_floor` is True, the noise of
    the larger variance becomes signal if it is a small part. Otherwise, signal eigenvalues become
    noise (all but a few of the largest) if noise of one variance explains them: n eigenvalues of
    such noise with N rows are at most about (1 + sqrt(n / N))^2 times their mean.
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
    """Whether so little of the noise has the larger variance that this part may be signal.

    A fit gives the larger variance to at least the fraction `least_mixing` of the noise. The answer
    is True if this limit is above 5 % (a small matrix), the fraction is near the limit, and the two
    variances clearly differ.
    """
    law, floor = result.estimate.law, least_mixing(count)
    small = floor > SMALLEST_SHARE and law.weights[-1] <= PINNED * floor
    return bool(small and law.atoms[-1] > DISTINCT * law.atoms[0])


def _outside(values: Array, law: BulkLaw, rows: int) -> Mask:
    """Mark the signal: eigenvalues above the noise or in a gap between its two intervals.

    The gap counts only if few eigenvalues lie in it. If there are less than half as many above the
    lower interval as the law predicts for the upper one, all of them are signal.
    """
    edges = finite_size_edges(law, rows)
    above = values > edges[-1, 1]
    if len(edges) == 1:
        return above
    beyond = values > edges[0, 1]
    if (beyond & ~above).sum() < EMPTY_BULK * law.weights[-1] * len(values):
        return beyond
    gap = beyond & (values < edges[1, 0])
    return above | gap if gap.sum() <= MAX_GAP_FRACTION * len(values) else above
