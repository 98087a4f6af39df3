"""What comes out of a fit: a weight's spectrum, split into noise and signal, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_rmt.spectra.agreement import kolmogorov_distance
from hf_rmt.spectra.eigenvalues import live_count
from hf_rmt.spectra.laws import BulkLaw
from hf_rmt.spectra.recovery import found_spikes
from hf_rmt.spectra.spike_map import Array, population_moment

MAX_DISTANCE = 0.12
"""Kolmogorov distance beyond which a bulk does not follow the fitted law."""


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
            a degenerate spectrum and where none was fitted or none can hold. `noise_law` is what
            it becomes beside K spikes.
        is_signal: Which eigenvalues are signal, shape (p,).
        upper_edge: Largest edge of `noise_law` plus its finite-size fluctuation; nan without one.
        residual: Root mean square of the standardised residuals of the fit: about 0.8 where the
            law holds, whatever the size. Of a published fit, in units of an eigenvalue; of the
            kernel estimator, of a density.
        distance: Kolmogorov distance between the law and the noise eigenvalues.
        converged: Whether the number of spikes reached a fixed point.
        phase: `random`, `bulk+spikes`, `heavy-tailed` or `degenerate`; `uneven entries` where
            the entries explain the spikes; `no law` where none was fitted or none can hold.
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
        if self.published or self.law is None:
            return self.law
        kept = 1 - self.n_spikes / self.shape[0]
        return self.law.rescaled(kept, aspect_ratio=min(self.law.aspect_ratio / kept, 1.0))

    @property
    def n_spikes(self) -> int:
        """K, the number of signal eigenvalues."""
        return int(self.is_signal.sum())

    @cached_property
    def spikes(self) -> Array:
        """Recovered population spikes alpha, descending, shape (K,).

        A spike near the edge was found because chance lifted it; that is corrected, except in a
        published fit. Where the count never settled, a signal eigenvalue may lie inside the bulk:
        it stands for itself.
        """
        law, sample = self.noise_law, self.eigenvalues[self.is_signal]
        if law is None:
            return sample
        rows = self.shape[0] - self.n_spikes
        if self.published:
            alpha = law.spike_inverse(sample)
        else:
            alpha = found_spikes(law, sample, self.upper_edge, rows)
        return np.where(np.isnan(alpha), sample, alpha)

    @property
    def signal_energy(self) -> float:
        """Fraction of the squared Frobenius norm that the signal eigenvalues hold."""
        total = self.eigenvalues.sum()
        if not 0 < total < np.inf:
            return 0.0
        return float(self.eigenvalues[self.is_signal].sum() / total)

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm."""
        total = self.eigenvalues.sum()
        return float(total / self.eigenvalues[0]) if 0 < total < np.inf else 0.0

    @property
    def noise(self) -> Array:
        """Noise eigenvalues, descending: neither signal nor null, shape (n,)."""
        rank = live_count(self.eigenvalues)
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
        with np.errstate(over="ignore", under="ignore"):
            return float(np.mean(values**order)) if len(values) else float("nan")

    def in_units(self, unit: float, eigenvalues: Array) -> SpectrumFit:
        """The fit of eigenvalues that are `unit` times those of this one.

        Args:
            unit: A positive factor.
            eigenvalues: The exact ones, unit times the own ones up to rounding, shape (p,).

        Returns:
            The same split, its law and edge in the new units.
        """
        law = None if self.law is None else self.law.rescaled(unit)
        return replace(self, eigenvalues=eigenvalues, law=law, upper_edge=unit * self.upper_edge)


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


def verdict(law: BulkLaw, noise: Array, has_signal: bool, reason: str = "") -> dict[str, Any]:
    """The fields `distance`, `phase` and `reason` of a fit, from its law and its noise."""
    distance = kolmogorov_distance(law, noise)
    if not reason and distance > MAX_DISTANCE:
        reason = f"the bulk does not follow the law: Kolmogorov distance {distance:.2f}"
    phase = Phase.HEAVY_TAILED if reason else Phase.SPIKED if has_signal else Phase.RANDOM
    return {"distance": distance, "phase": phase, "reason": reason}
