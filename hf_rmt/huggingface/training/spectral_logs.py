"""What spectra say in numbers, for the logs of a Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from hf_rmt.spectra import Phase, SpectrumFit

PREFIX = "rmt/"

PHASE_NUMBERS = {
    Phase.RANDOM: 0,
    Phase.SPIKED: 1,
    Phase.HEAVY_TAILED: 2,
    Phase.DEGENERATE: 3,
    Phase.UNEVEN: 4,
}


def spectral_logs(fits: Mapping[str, SpectrumFit | None]) -> dict[str, float]:
    """Numbers to log: means over the layers as `rmt/spikes`, layers as `rmt/<name>/spikes`.

    Args:
        fits: Fitted spectra by layer; None for one too small to look at.

    Returns:
        spikes, upper_edge, signal_energy, stable_rank and phase, which counts 0 random,
        1 bulk+spikes, 2 heavy-tailed, 3 degenerate. What is not finite is left out, and what a
        method without a law does not say: edge and phase.
    """
    layers = {name: _numbers(fit) for name, fit in fits.items() if fit is not None}
    quantities = dict.fromkeys(key for numbers in layers.values() for key in numbers)
    means = {
        f"{PREFIX}{key}": fmean(numbers[key] for numbers in layers.values() if key in numbers)
        for key in quantities
    }
    single = {
        f"{PREFIX}{name}/{key}": value
        for name, numbers in layers.items()
        for key, value in numbers.items()
    }
    return means | single


def without_layers(logs: Mapping[str, float]) -> dict[str, float]:
    """Logs without those of single layers, for the eye."""
    return {
        key: value
        for key, value in logs.items()
        if not (key.startswith(PREFIX) and "/" in key.removeprefix(PREFIX))
    }


def _numbers(fit: SpectrumFit) -> dict[str, float]:
    numbers = {
        "spikes": float(fit.n_spikes),
        "upper_edge": float(fit.upper_edge),
        "signal_energy": fit.signal_energy,
        "stable_rank": fit.stable_rank,
        "phase": float(PHASE_NUMBERS.get(fit.phase, math.nan)),
    }
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
