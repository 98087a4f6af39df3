"""Filtering one weight again and again while it is trained, and what a spectrum says in numbers.

The first filter of a weight fits its spectrum, recovers the spikes and decides the rank. After
that the noise is gone, or what little of it training has added: no law fits the rest, and
recovering a spike twice would shrink it twice. So from then on the rank stands. A method that
zeroes entries, not directions, chooses them anew each time. The plan of a later filter names the
energy that the first one took, if that was more: it is what the training had to make up for.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hf_rmt.compression.directions import kept_directions
from hf_rmt.compression.spectrum import Decomposition, fit_spectrum
from hf_rmt.compression.weight import (
    NOTHING_LEFT,
    CompressedWeight,
    compress_weight,
    keep_directions,
)
from hf_rmt.plan import LayerPlan
from hf_rmt.settings import METHOD_TABLE, CompressionSettings
from hf_rmt.spectra import Phase

RELATIVE_NULL = 1e-14
"""Rounding errors of a float64 Gram matrix, in units of its largest eigenvalue."""


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
    if first is None:
        result = compress_weight(name, weight, settings)
        nothing = of_update and result.plan.reason == NOTHING_LEFT
        return replace(result, filtered=torch.zeros_like(weight)) if nothing else result
    result = _again(name, weight, settings, first, of_update)
    lost = max(result.plan.dropped_energy, first.dropped_energy)
    return replace(result, plan=replace(result.plan, dropped_energy=lost))


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


def _again(
    name: str, weight: Tensor, settings: CompressionSettings, first: LayerPlan, of_update: bool
) -> CompressedWeight:
    """Filter a weight once more."""
    if METHOD_TABLE[settings.method].prune:
        return compress_weight(name, weight, settings)
    once = replace(settings, recover_spikes=False)
    if settings.noise != "drop" or not torch.isfinite(weight).all():
        return compress_weight(name, weight, once)
    return _project(name, weight, once, first, of_update)


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
