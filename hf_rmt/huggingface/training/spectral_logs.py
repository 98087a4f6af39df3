"""Numbers on spectra (the eigenvalues of each weight), for the logs of a Trainer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from hf_rmt.spectra import Phase, SpectrumFit

PREFIX = "rmt/"

PHASES = (Phase.RANDOM, Phase.SPIKED, Phase.HEAVY_TAILED, Phase.DEGENERATE, Phase.UNEVEN)
AVERAGED = ("spikes", "signal_energy", "stable_rank")


def spectral_logs(fits: Mapping[str, SpectrumFit | None]) -> dict[str, float]:
    """Make numbers to log: means (`rmt/spikes`) and those of each layer (`rmt/<name>/spikes`).

    Args:
        fits: A dict from layer names to spectra, split into noise and signal. A spectrum is the
            eigenvalues (squared singular values) of the layer's weight. None stands for a layer
            that is too small.

    Returns:
        A dict from keys to numbers. `spikes` (the number of signal eigenvalues), `signal_energy`
        and `stable_rank` are given for each layer and as means over the layers. `upper_edge`, the
        limit above which an eigenvalue is signal, is given only for each layer, because layers have
        different scales. `SpectrumFit` defines these numbers. Values that are not finite are left
        out. The keys that begin with `rmt/phases/` count the layers with each `Phase`.
    """
    seen = {name: fit for name, fit in fits.items() if fit is not None}
    layers = {name: _numbers(fit) for name, fit in seen.items()}
    quantities = [key for key in AVERAGED if any(key in numbers for numbers in layers.values())]
    means = {
        f"{PREFIX}{key}": fmean(numbers[key] for numbers in layers.values() if key in numbers)
        for key in quantities
    }
    counts = Counter(fit.phase for fit in seen.values())
    phases = {f"{PREFIX}phases/{phase}": float(counts[phase]) for phase in PHASES}
    single = {
        f"{PREFIX}{name}/{key}": value
        for name, numbers in layers.items()
        for key, value in numbers.items()
    }
    return means | phases | single


def summary(logs: Mapping[str, float]) -> dict[str, float]:
    """The logs without the numbers of single layers and the counts of `Phase` values."""
    return {key: value for key, value in logs.items() if not _is_single(key)}


def _is_single(key: str) -> bool:
    return key.startswith(PREFIX) and "/" in key.removeprefix(PREFIX)


def _numbers(fit: SpectrumFit) -> dict[str, float]:
    numbers = {
        "spikes": float(fit.n_spikes),
        "upper_edge": float(fit.upper_edge),
        "signal_energy": fit.signal_energy,
        "stable_rank": fit.stable_rank,
    }
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
