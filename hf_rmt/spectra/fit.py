"""Which eigenvalues of a weight are signal: the double bulk and its spikes, fitted together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.spectra.double_bulk import DoubleBulk
from hf_rmt.spectra.estimation import BulkEstimate, estimate_bulk
from hf_rmt.spectra.laws import Array, population_moment
from hf_rmt.spectra.published import published_bulk
from hf_rmt.spectra.tracy_widom import tracy_widom_quantile

EDGE_CONFIDENCE = 0.999
"""A noise eigenvalue exceeds its finite-size edge with probability 1 - EDGE_CONFIDENCE."""
MIN_EIGENVALUES = 24
"""Fewer say nothing about a law."""
MAX_SPIKE_FRACTION = 1 / 6
"""More spikes than this are no outliers of a bulk; the iteration is cut there: heavy-tailed."""
MAX_DISTANCE = 0.12
"""Kolmogorov distance beyond which a bulk does not follow the fitted law."""
MAX_GAP_FRACTION = 0.02
"""A gap of the law that holds more of the eigenvalues than this is no gap of the spectrum."""
MAX_NULL_FRACTION = 0.1
"""More zero eigenvalues than this mean a rank-deficient matrix, which no bulk describes."""
RELATIVE_ZERO = 1e-14
START_QUANTILE, START_FACTOR = 0.9, 2.0
"""The start: a law of the lowest 90 %; all beyond twice its edge is a spike for certain."""
MAX_ROUNDS = 40


class Phase(StrEnum):
    """What a spectrum looks like."""

    RANDOM = "random"
    SPIKED = "bulk+spikes"
    HEAVY_TAILED = "heavy-tailed"
    DEGENERATE = "degenerate"


@dataclass(frozen=True)
class SpectrumFit:
    """A weight's spectrum, split into noise and signal.

    Attributes:
        shape: (N, p), N >= p.
        eigenvalues: Squared singular values, descending, shape (p,).
        law: The law of the noise; None for a degenerate spectrum.
        is_signal: Which eigenvalues are signal, shape (p,).
        upper_edge: Largest edge of the law plus its finite-size fluctuation; nan without a law.
        residual: Root mean square of the standardised residuals of the least-squares fit.
        distance: Kolmogorov distance between the law and the noise eigenvalues.
        converged: Whether the number of spikes reached a fixed point.
        phase: `random`, `bulk+spikes`, `heavy-tailed` or `degenerate`.
        reason: Why the model does not hold; empty where it does.
    """

    shape: tuple[int, int]
    eigenvalues: Array = field(repr=False)
    law: DoubleBulk | None
    is_signal: NDArray[np.bool_] = field(repr=False)
    upper_edge: float
    residual: float
    distance: float
    converged: bool
    phase: Phase
    reason: str = ""

    @property
    def n_spikes(self) -> int:
        """K, the number of signal eigenvalues."""
        return int(self.is_signal.sum())

    @property
    def spikes(self) -> Array:
        """Recovered population spikes alpha, descending, shape (K,)."""
        if self.law is None:
            return np.zeros(0)
        return self.law.spike_inverse(self.eigenvalues[self.is_signal])

    @property
    def signal_energy(self) -> float:
        """Fraction of the squared Frobenius norm that the signal eigenvalues hold."""
        total = self.eigenvalues.sum()
        return float(self.eigenvalues[self.is_signal].sum() / total) if total > 0 else 0.0

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm."""
        largest = self.eigenvalues[0]
        return float(self.eigenvalues.sum() / largest) if largest > 0 else 0.0

    def moment(self, order: int) -> float:
        """Moment of the fitted whole population, recovered spikes included; nan without a law."""
        if self.law is None:
            return float("nan")
        rows, columns = self.shape
        spikes = self.spikes
        bulk = (columns - len(spikes)) / columns
        atoms = np.concatenate([spikes, self.law.atoms])
        weights = np.concatenate([np.full(len(spikes), 1 / columns), bulk * self.law.weights])
        return population_moment(atoms, weights, columns / rows, order)

    def empirical_moment(self, order: int) -> float:
        """Mean of the k-th power of the eigenvalues, to hold beside `moment`."""
        return float(np.mean(self.eigenvalues**order))


def fit_double_bulk(
    eigenvalues: ArrayLike, shape: tuple[int, int], *, published: bool = False
) -> SpectrumFit:
    """Fit the population double bulk model to a weight's eigenvalues and count its spikes.

    The spikes are removed, a law is fitted to the rest, its edges with their Tracy-Widom
    fluctuation say which eigenvalues are spikes, and so on until nothing changes. The first
    round starts from the certain spikes alone, so that the least fixed point is found. Where
    the count runs away, as on heavy tails, the first round stands and the phase says so.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        published: Use PDBLS as the paper states it instead: one round, asymptotic edge.

    Returns:
        The fit. A spectrum that cannot be fitted is `degenerate`, with a reason.

    Raises:
        ValueError: If the eigenvalues do not fit the shape.

    Source:
        Wu, Zhu & Li, ICML 2025, algorithm 1; the changes are described in `estimation`.

    Examples:
        >>> from hf_rmt.spectra.ensembles import double_bulk_matrix
        >>> weight = double_bulk_matrix(
        ...     (800, 400), mixing=0.4, variances=(3.0, 1.0), spikes=(30.0, 20.0), seed=0
        ... )
        >>> fit = fit_double_bulk(np.linalg.svd(weight, compute_uv=False) ** 2, weight.shape)
        >>> fit.n_spikes, str(fit.phase)
        (2, 'bulk+spikes')
    """
    rows, columns = max(shape), min(shape)
    values = np.sort(np.asarray(eigenvalues, dtype=float))[::-1]
    if values.shape != (columns,):
        raise ValueError(
            f"a weight of shape {tuple(shape)} has {columns} eigenvalues, got an array of shape "
            f"{values.shape}; pass the squared singular values"
        )
    reason = _why_degenerate(values)
    if reason:
        return _degenerate((rows, columns), values, reason)
    values = np.maximum(values, 0.0)
    if published:
        estimate = published_bulk(values, rows)
        signal = values > estimate.law.upper_edge
        return _assemble(rows, values, estimate, signal, converged=estimate.converged)
    return _self_consistent(rows, values)


def _why_degenerate(values: Array) -> str:
    """Reason for which no law can be fitted; empty if one can."""
    if not np.all(np.isfinite(values)):
        return "the weight holds nan or inf"
    if len(values) < MIN_EIGENVALUES:
        return f"{len(values)} eigenvalues, fewer than the {MIN_EIGENVALUES} a law needs"
    if values[0] <= 0:
        return "the weight is zero"
    rank = int(np.sum(values > RELATIVE_ZERO * len(values) * values[0]))
    if rank < (1 - MAX_NULL_FRACTION) * len(values):
        return f"rank {rank} of {len(values)}: the weight is low-rank already"
    return ""


def _degenerate(shape: tuple[int, int], values: Array, reason: str) -> SpectrumFit:
    nan = float("nan")
    nothing = np.zeros(len(values), dtype=bool)
    return SpectrumFit(
        shape, values, None, nothing, nan, nan, nan, False, Phase.DEGENERATE, reason
    )


def _self_consistent(rows: int, values: Array) -> SpectrumFit:
    """Iterate fit and count to a fixed point, or report where that runs away."""
    signal = _certain_spikes(rows, values)
    estimate = estimate_bulk(values[~signal], rows, precision=1e-6)
    found = first = _outside(values, estimate.law, rows)
    first_estimate, seen = estimate, {signal.tobytes()}
    while found.tobytes() not in seen and len(seen) < MAX_ROUNDS:
        if found.sum() > MAX_SPIKE_FRACTION * len(values):
            reason = f"the spikes run away: {int(found.sum())} of {len(values)} and rising"
            return _assemble(rows, values, first_estimate, first, reason=reason)
        signal = found
        seen.add(signal.tobytes())
        start = estimate.position
        estimate = estimate_bulk(values[~signal], rows, start=start, precision=1e-6)
        found = _outside(values, estimate.law, rows)
    fixed = np.array_equal(found, signal)
    estimate = estimate_bulk(values[~signal], rows, start=estimate.position)
    return _assemble(rows, values, estimate, signal, converged=fixed and estimate.converged)


def _certain_spikes(rows: int, values: Array) -> NDArray[np.bool_]:
    """Eigenvalues that no bulk could hold: beyond twice the edge of a law of the lower 90 %."""
    lower = values[int(np.ceil((1 - START_QUANTILE) * len(values))) :]
    law = estimate_bulk(lower, rows, precision=1e-6).law
    return values > START_FACTOR * law.upper_edge


def _finite_size_edges(law: DoubleBulk, rows: int) -> Array:
    """Edges of the law moved outwards by their Tracy-Widom fluctuation, shape (intervals, 2)."""
    quantile = tracy_widom_quantile(EDGE_CONFIDENCE)
    points = law.critical_points.reshape(-1, 2)
    shifts = [
        [-law.edge_fluctuation(low, rows), law.edge_fluctuation(high, rows)]
        for low, high in points
    ]
    return law.bulk_edges + quantile * np.array(shifts)


def _outside(values: Array, law: DoubleBulk, rows: int) -> NDArray[np.bool_]:
    """Which eigenvalues lie above the bulk or in a true gap of it."""
    edges = _finite_size_edges(law, rows)
    above = values > edges[-1, 1]
    if len(edges) == 2:
        gap = (values > edges[0, 1]) & (values < edges[1, 0])
        if gap.sum() <= MAX_GAP_FRACTION * len(values):
            return above | gap
    return above


def _assemble(
    rows: int,
    values: Array,
    estimate: BulkEstimate,
    signal: NDArray[np.bool_],
    *,
    converged: bool = False,
    reason: str = "",
) -> SpectrumFit:
    """The fit with its verdict."""
    distance = _kolmogorov_distance(estimate.law, values[~signal])
    if not reason and distance > MAX_DISTANCE:
        reason = f"the bulk does not follow the law: Kolmogorov distance {distance:.2f}"
    phase = Phase.SPIKED if signal.any() else Phase.RANDOM
    return SpectrumFit(
        shape=(rows, len(values)),
        eigenvalues=values,
        law=estimate.law,
        is_signal=signal,
        upper_edge=float(_finite_size_edges(estimate.law, rows)[-1, 1]),
        residual=estimate.residual,
        distance=distance,
        converged=converged,
        phase=Phase.HEAVY_TAILED if reason else phase,
        reason=reason,
    )


def _kolmogorov_distance(law: DoubleBulk, noise: Array) -> float:
    """Largest distance between the law's cdf and the empirical one of descending noise."""
    steps = np.arange(len(noise) + 1) / len(noise)
    theory = law.cdf(noise[::-1])
    return float(max(np.max(steps[1:] - theory), np.max(theory - steps[:-1])))
