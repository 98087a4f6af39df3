"""Defines `SpectrumFit`: a weight's eigenvalues, split into noise and signal, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_rmt.spectra.agreement import kolmogorov_distance
from hf_rmt.spectra.eigenvalues import live_count
from hf_rmt.spectra.fits.recovery import found_spikes
from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.spike_map import Array, population_moment

MAX_DISTANCE = 0.12
"""If `kolmogorov_distance` is larger than this, the noise eigenvalues do not follow the law, the
distribution that the fit predicts for them."""


class Phase(StrEnum):
    """The possible verdicts on a weight's eigenvalues; `SpectrumFit` tells what each one means."""

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
        shape: (N, p), the longer and the shorter side of the weight.
        eigenvalues: Squared singular values, descending, shape (p,).
        law: The distribution that theory predicts for the noise eigenvalues; `hf_rmt.spectra`
            explains the model. Its ratio c is n / N for the n eigenvalues in `noise`, except in a
            published fit. The law is None if the phase is `degenerate` or `no law`.
            `noise_law` is this law, corrected for the effect of the spikes (signal eigenvalues).
        is_signal: Which eigenvalues are signal, shape (p,).
        upper_edge: The limit above which an eigenvalue is a spike: the upper end of `noise_law`
            plus the distance that chance explains; nan without a law.
        residual: Root mean square of the residuals of the fit, each divided by its standard
            deviation. The value is about 0.8 if the law holds, for a weight of any size. In a
            published fit (see `published`), they are not divided: they are differences between
            eigenvalues, or between densities if `method="kernel"`.
        distance: `kolmogorov_distance` between the law and the noise eigenvalues; nan without a
            law.
        converged: Whether the fit has settled: another round would find the same spikes.
        phase: The verdict. `random`: there are no spikes. `bulk+spikes`: there are spikes.
            `heavy-tailed`: the law does not hold, or heavy-tailed entries explain the spikes.
            `uneven entries`: zeros, unequal or repeated rows explain the spikes. `degenerate`: no
            law can be fitted, for example to a weight of zeros. `no law`: none was fitted, or none
            can hold.
        reason: Why the law does not hold or was not fitted; empty if it holds.
        published: Whether the law is used as in its paper, without the correction of `noise_law`.
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

    @cached_property
    def noise_law(self) -> BulkLaw | None:
        """The law of the noise, corrected for the effect of the K spikes (signal eigenvalues).

        A law is the distribution that theory predicts for noise eigenvalues. The weight has N rows.
        A spike far above the noise takes one row and one column away from the noise. So the result
        is the law of noise with N - K rows, and its variances are those of `law` times 1 - K/N.
        This follows from the equation (SS) of `hf_rmt.spectra.fits.estimation`, because each spike
        adds 1 / (N s) to its right-hand side. A published fit ignores this: then `law` itself is
        returned.
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
        """The sizes alpha that the K spikes had before noise was added, descending, shape (K,).

        Spikes are the eigenvalues of the signal. Noise makes the eigenvalue of a spike larger than
        alpha. Also, a weak spike is found only if chance lifts its eigenvalue over `upper_edge`.
        Both effects are corrected, but in a published fit only the first one. If there is no
        `law` of the noise, the eigenvalues themselves are returned. If the fit did not converge, a
        signal eigenvalue may lie within the range of the noise. It is then returned as it is.
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
        """The signal's fraction of the weight's squared Frobenius norm."""
        total = self.eigenvalues.sum()
        if not 0 < total < np.inf:
            return 0.0
        return float(self.eigenvalues[self.is_signal].sum() / total)

    @property
    def stable_rank(self) -> float:
        """Sum of the eigenvalues divided by the largest one; 0 if the sum is zero or not finite."""
        total = self.eigenvalues.sum()
        return float(total / self.eigenvalues[0]) if 0 < total < np.inf else 0.0

    @property
    def noise(self) -> Array:
        """Noise eigenvalues, descending, shape (n,): those that are neither signal nor zero."""
        rank = live_count(self.eigenvalues)
        return self.eigenvalues[:rank][~self.is_signal[:rank]]

    def moment(self, order: int, *, bulk: bool = False) -> float:
        """The mean of `eigenvalue**order` that the fit predicts; nan without a `law`.

        The mean is over the noise and the recovered signal (see `spikes`) or, with bulk=True, over
        the noise alone.
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
        """The mean of `eigenvalue**order` over the measured eigenvalues, to compare with `moment`.

        With bulk=True, the mean is over the eigenvalues in `noise` alone.
        """
        values = self.noise if bulk else self.eigenvalues
        with np.errstate(over="ignore", under="ignore"):
            return float(np.mean(values**order)) if len(values) else float("nan")

    def in_units(self, unit: float, eigenvalues: Array) -> SpectrumFit:
        """The same fit in other units: all eigenvalues are multiplied by `unit`.

        Args:
            unit: A positive factor.
            eigenvalues: The new eigenvalues, shape (p,). They are stored as they are; up to
                rounding, they are `unit` times the present ones.

        Returns:
            The same split, with `law` and `upper_edge` in the new units.
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
    """A `SpectrumFit` whose `law` is None; the largest `n_signal` eigenvalues are signal."""
    nan = float("nan")
    signal, oriented = np.arange(len(values)) < n_signal, (max(shape), min(shape))
    return SpectrumFit(oriented, values, None, signal, nan, nan, nan, False, phase, reason)


def verdict(law: BulkLaw, noise: Array, has_signal: bool, reason: str = "") -> dict[str, Any]:
    """The fields `distance`, `phase` and `reason` of `SpectrumFit`, which judge a fitted law.

    A law is the predicted distribution of noise eigenvalues; `noise` holds the measured ones. If
    `reason` is given, it says why the law does not hold.
    """
    distance = kolmogorov_distance(law, noise)
    if not reason and distance > MAX_DISTANCE:
        reason = f"the bulk does not follow the law: Kolmogorov distance {distance:.2f}"
    phase = Phase.HEAVY_TAILED if reason else Phase.SPIKED if has_signal else Phase.RANDOM
    return {"distance": distance, "phase": phase, "reason": reason}
