"""Which eigenvalues of a weight are signal: the double bulk and its spikes, fitted together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_rmt.spectra.agreement import kolmogorov_distance
from hf_rmt.spectra.double_bulk import DoubleBulk
from hf_rmt.spectra.laws import BulkLaw
from hf_rmt.spectra.published import published_bulk
from hf_rmt.spectra.separation import finite_size_edges, separate
from hf_rmt.spectra.spike_map import Array, population_moment

MIN_EIGENVALUES = 24
"""Fewer say nothing about a law."""
MAX_DISTANCE = 0.12
"""Kolmogorov distance beyond which a bulk does not follow the fitted law."""
MAX_NULL_FRACTION = 0.1
"""More zero eigenvalues than this mean a rank-deficient matrix, which no bulk describes."""
RELATIVE_ZERO = 1e-14
"""Zero, in units of the largest eigenvalue and for each dimension."""
MOST_NEGATIVE = 1e-3
"""What rounding leaves below zero is smaller than this part of the largest eigenvalue."""


class Phase(StrEnum):
    """What a spectrum looks like."""

    RANDOM = "random"
    SPIKED = "bulk+spikes"
    HEAVY_TAILED = "heavy-tailed"
    UNEVEN = "uneven entries"
    DEGENERATE = "degenerate"
    LAWLESS = "no law"


@dataclass(frozen=True)
class SpectrumFit:
    """A weight's spectrum, split into noise and signal.

    Attributes:
        shape: (N, p), N >= p.
        eigenvalues: Squared singular values, descending, shape (p,).
        law: The population: of a double bulk its mixing and variances, c = (p - K) / N; None for
            a degenerate spectrum and where none was fitted. `noise_law` is what it becomes beside
            K spikes.
        is_signal: Which eigenvalues are signal, shape (p,).
        upper_edge: Largest edge of `noise_law` plus its finite-size fluctuation; nan without one.
        residual: Root mean square of the standardised residuals of the fit: about 0.8 where the
            law holds, whatever the size. Of a published fit, in units of an eigenvalue; of the
            kernel estimator, of a density.
        distance: Kolmogorov distance between the law and the noise eigenvalues.
        converged: Whether the number of spikes reached a fixed point.
        phase: `random`, `bulk+spikes`, `heavy-tailed` or `degenerate`; `no law` where none was
            fitted.
        reason: Why the model does not hold; empty where it does.
        published: Whether the law is taken as its paper has it, which lets the spikes take no
            direction out of the noise.
    """

    shape: tuple[int, int]
    eigenvalues: Array = field(repr=False)
    law: BulkLaw | None
    is_signal: NDArray[np.bool_] = field(repr=False)
    upper_edge: float
    residual: float
    distance: float
    converged: bool
    phase: Phase
    reason: str = ""
    published: bool = False

    @property
    def noise_law(self) -> BulkLaw | None:
        """The law that the p - K noise eigenvalues follow: N - K rows, variances (1 - K/N) tau.

        A spike far above the bulk adds 1 / (N s) to the right of (SS), z = -1/s + ...: it takes
        one direction out of both sides of the noise. What K of them leave is the (SS) of a matrix
        with N - K rows and variances scaled by 1 - K/N. A published fit leaves this out.
        """
        if self.published or not isinstance(self.law, DoubleBulk):
            return self.law
        rows = self.shape[0]
        kept = 1 - self.n_spikes / rows
        first, second = self.law.variances
        aspect_ratio = min(self.law.aspect_ratio / kept, 1.0)
        return DoubleBulk(self.law.mixing, (first * kept, second * kept), aspect_ratio)

    @property
    def n_spikes(self) -> int:
        """K, the number of signal eigenvalues."""
        return int(self.is_signal.sum())

    @property
    def spikes(self) -> Array:
        """Recovered population spikes alpha, descending, shape (K,).

        Where the count never settled, a signal eigenvalue may lie inside the bulk: it stands for
        itself.
        """
        law, sample = self.noise_law, self.eigenvalues[self.is_signal]
        if law is None:
            return sample
        alpha = law.spike_inverse(sample)
        return np.where(np.isnan(alpha), sample, alpha)

    @property
    def signal_energy(self) -> float:
        """Fraction of the squared Frobenius norm that the signal eigenvalues hold."""
        total = self.eigenvalues.sum()
        return float(self.eigenvalues[self.is_signal].sum() / total) if total > 0 else 0.0

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm."""
        total = self.eigenvalues.sum()
        return float(total / self.eigenvalues[0]) if total > 0 else 0.0

    @property
    def noise(self) -> Array:
        """Noise eigenvalues, descending: neither signal nor null, shape (n,)."""
        rank = _live(self.eigenvalues)
        return self.eigenvalues[:rank][~self.is_signal[:rank]]

    def moment(self, order: int, *, bulk: bool = False) -> float:
        """Moment of the fitted population, recovered spikes included, or of the bulk's law alone.

        It is nan without a law.
        """
        if self.law is None or self.noise_law is None:
            return float("nan")
        if bulk:
            return self.noise_law.moment(order)
        rows, columns = self.shape
        spikes = self.spikes
        noise = min(self.law.aspect_ratio * rows, columns - len(spikes)) / columns
        atoms = np.concatenate([spikes, self.law.atoms])
        weights = np.concatenate([np.full(len(spikes), 1 / columns), noise * self.law.weights])
        return population_moment(atoms, weights, columns / rows, order)

    def empirical_moment(self, order: int, *, bulk: bool = False) -> float:
        """Mean k-th power of the eigenvalues, or of `noise`, to hold beside `moment`."""
        values = self.noise if bulk else self.eigenvalues
        return float(np.mean(values**order)) if len(values) else float("nan")


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
        ValueError: If the eigenvalues do not fit the shape or are clearly negative.

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
    values = sorted_eigenvalues(eigenvalues, shape)
    if reason := why_degenerate(values):
        return without_law(shape, values, reason)
    rows, rank = max(shape), _live(values)
    values = np.maximum(values, 0.0)
    return _published(rows, values) if published else _self_consistent(rows, values, rank)


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
    rank = _live(values)
    if not np.all(np.isfinite(values)):
        return "the weight holds nan or inf"
    if len(values) < MIN_EIGENVALUES:
        return f"{len(values)} eigenvalues, fewer than the {MIN_EIGENVALUES} a law needs"
    if values[0] <= 0:
        return "the weight is zero"
    if rank < (1 - MAX_NULL_FRACTION) * len(values):
        return f"rank {rank} of {len(values)}: the weight is low-rank already"
    return ""


def _live(values: Array) -> int:
    """How many eigenvalues are more than rounding errors."""
    return int(np.sum(values > RELATIVE_ZERO * len(values) * values[:1]))


def without_law(
    shape: tuple[int, int],
    values: Array,
    reason: str = "",
    *,
    n_signal: int = 0,
    phase: Phase = Phase.DEGENERATE,
) -> SpectrumFit:
    """A spectrum that no law was fitted to, its largest eigenvalues called signal."""
    nan = float("nan")
    signal, oriented = np.arange(len(values)) < n_signal, (max(shape), min(shape))
    return SpectrumFit(oriented, values, None, signal, nan, nan, nan, False, phase, reason)


def _published(rows: int, values: Array) -> SpectrumFit:
    """One round, the asymptotic edge, any gap and any null direction ignored."""
    estimate = published_bulk(values, rows)
    edge = estimate.law.upper_edge
    signal = values > edge
    return SpectrumFit(
        shape=(rows, len(values)),
        eigenvalues=values,
        law=estimate.law,
        is_signal=signal,
        upper_edge=edge,
        residual=estimate.residual,
        converged=estimate.converged,
        published=True,
        **verdict(estimate.law, values[~signal], bool(signal.any())),
    )


def _self_consistent(rows: int, values: Array, rank: int) -> SpectrumFit:
    """The separation with its verdict, its law carried from the noise matrix to the population.

    Null directions belong to neither noise nor signal.
    """
    live = values[:rank]
    result = separate(live, rows)
    law = result.estimate.law
    left = rows - int(result.signal.sum())
    first, second = (variance * rows / left for variance in law.variances)
    noise = live[~result.signal]
    return SpectrumFit(
        shape=(rows, len(values)),
        eigenvalues=values,
        law=DoubleBulk(law.mixing, (first, second), len(noise) / rows),
        is_signal=np.concatenate([result.signal, np.zeros(len(values) - rank, dtype=bool)]),
        upper_edge=float(finite_size_edges(law, left)[-1, 1]),
        residual=result.estimate.residual,
        converged=result.converged,
        **verdict(law, noise, bool(result.signal.any()), result.reason),
    )


def verdict(law: BulkLaw, noise: Array, has_signal: bool, reason: str = "") -> dict[str, Any]:
    """The fields `distance`, `phase` and `reason` of a fit, from its law and its noise."""
    distance = kolmogorov_distance(law, noise)
    if not reason and distance > MAX_DISTANCE:
        reason = f"the bulk does not follow the law: Kolmogorov distance {distance:.2f}"
    phase = Phase.HEAVY_TAILED if reason else Phase.SPIKED if has_signal else Phase.RANDOM
    return {"distance": distance, "phase": phase, "reason": reason}
