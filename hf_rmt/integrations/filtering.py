"""Filtering one weight again and again while it is trained, and what a spectrum says in numbers.

The first filter of a weight fits its spectrum, recovers the spikes and decides the rank. After
that the noise is gone, or what little of it training has added: no law fits the rest, and
recovering a spike twice would shrink it twice. So from then on the rank stands. A method that
zeroes entries, not directions, chooses them anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hf_rmt.compression import (
    NOTHING_LEFT,
    CompressedWeight,
    compress_weight,
    keep_directions,
)
from hf_rmt.decompose import Decomposition, fit_spectrum
from hf_rmt.directions import kept_directions
from hf_rmt.integrations.config import RMTConfig
from hf_rmt.plan import LayerPlan
from hf_rmt.settings import METHOD_TABLE, CompressionSettings
from hf_rmt.spectra import Phase, SpectrumFit

PREFIX = "rmt/"
PHASE_NUMBERS = {Phase.RANDOM: 0, Phase.SPIKED: 1, Phase.HEAVY_TAILED: 2, Phase.DEGENERATE: 3}
RELATIVE_NULL = 1e-14
"""Rounding errors of a float64 Gram matrix, in units of its largest eigenvalue."""


def filter_config(config: RMTConfig | Mapping[str, Any] | None) -> Any:
    """The config of a filter: a mapping is one that a checkpoint's state kept.

    Raises:
        ValueError: If its method looks at no spectrum.
    """
    if config is None:
        return RMTConfig(noise="drop")
    made: Any = RMTConfig.from_dict(config) if isinstance(config, Mapping) else config
    if METHOD_TABLE[made.method].decide:
        raise ValueError(
            f"RMTCallback filters spectra, and method={made.method!r} looks at none; call "
            "hf_rmt.compress(model, config, calibration=batches), and train what it made with "
            "hf_rmt.TernaryCallback() in RMTCallback's place"
        )
    return made


def filter_weight(
    name: str,
    weight: Tensor,
    settings: CompressionSettings,
    first: LayerPlan | None = None,
    *,
    of_update: bool = False,
) -> CompressedWeight:
    """Filter a weight, or what training added to it, for the first time or once more.

    Args:
        name: Runtime name of the module.
        weight: Shape (out, in); it is not changed.
        settings: What the user asked for.
        first: What the first filter decided, with the rank that it kept; None if this is it.
        of_update: Whether this is what training added: a later fit may then raise the rank, and
            one without spikes is dropped.

    Returns:
        The decision. A whole weight without spikes stays as it is: nothing would be left of it.
    """
    if first is None or METHOD_TABLE[settings.method].prune:
        result = compress_weight(name, weight, settings)
        nothing = of_update and result.plan.reason == NOTHING_LEFT
        return replace(result, filtered=torch.zeros_like(weight)) if nothing else result
    once = replace(settings, recover_spikes=False)
    if settings.noise != "drop" or not torch.isfinite(weight).all():
        return compress_weight(name, weight, once)
    return _project(name, weight, once, first, of_update)


def first_plan(result: CompressedWeight, settings: CompressionSettings) -> LayerPlan | None:
    """What to remember of the first filter, its rank included; None if it changed nothing."""
    changed = result.plan.compressed or result.filtered is not None
    if result.fit is None or not changed:
        return None
    return replace(result.plan, rank=len(kept_directions(result.fit, settings, result.plan.name)))


def dense_weight(result: CompressedWeight, weight: Tensor) -> Tensor | None:
    """The filtered weight at its old shape; None if it stays as it is."""
    if result.plan.compressed:
        return result.module(weight, None).dense().detach()
    return result.filtered


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


def _project(
    name: str, weight: Tensor, settings: CompressionSettings, first: LayerPlan, of_update: bool
) -> CompressedWeight:
    """Keep the largest directions, as many as the first filter kept.

    A filtered weight is too close to low rank for float32 Gram matrices.
    """
    matrix = (weight if weight.shape[0] >= weight.shape[1] else weight.T).to(torch.float64)
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values = torch.where(values > RELATIVE_NULL * values[-1], values, 0.0).flip(0)
    fit = fit_spectrum(values, (weight.shape[0], weight.shape[1]), settings)
    rank = first.rank
    if of_update and fit.phase != Phase.DEGENERATE:
        rank = max(rank, len(kept_directions(fit, settings, name)))
    result = keep_directions(
        name, weight, Decomposition(fit, vectors), torch.arange(rank), settings
    )
    plan = replace(
        result.plan,
        phase=first.phase,
        n_spikes=first.n_spikes,
        upper_edge=first.upper_edge,
        reason=first.reason,
    )
    return replace(result, plan=plan)
