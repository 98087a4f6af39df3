"""Filters one weight repeatedly while it is trained.

To filter a weight is to remove its noise (see `hf_rmt.spectra`). A spike is a singular value that
stands out from the noise. To recover a spike is to shrink it to its size without noise. The first
filter finds the spikes, recovers them and decides the rank. After that the noise is gone, except
for the little that training has added. What was added does not look like noise, so later filters
keep the same rank. They recover no spikes, because that would shrink a spike twice. Some methods
set entries to zero, not directions (singular values with their vectors). They choose the entries
anew each time. Energy is the squared norm. If the first filter removed more energy than a later
one, the plan of the later one reports the larger number, because the training had to make up for
the larger loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hf_rmt.compression.decision import Decision
from hf_rmt.compression.directions import kept_directions
from hf_rmt.compression.eigensystem import eigensystem
from hf_rmt.compression.gram import gram
from hf_rmt.compression.methods.spectral import SpectralMethod, spectral_method_of
from hf_rmt.compression.spectrum import (
    RELATIVE_NULL,
    Decomposition,
    fit_spectrum,
    without_rounding,
)
from hf_rmt.compression.weight import compress_weight
from hf_rmt.plan import Cause, LayerPlan, Outcome
from hf_rmt.settings import CompressionSettings, method_of
from hf_rmt.spectra import Phase

NO_UPDATE = "no signal stands out from the noise, so the whole update is dropped"


def filter_weight(
    name: str,
    weight: Tensor,
    settings: CompressionSettings,
    first: LayerPlan | None = None,
    *,
    of_update: bool = False,
) -> Decision:
    """Filter a weight, or its update: remove the noise, for the first time or again.

    A spike is a singular value (with its vectors, a direction) that stands out from the noise.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: Shape (out, in); it is not changed.
        settings: The method and its options.
        first: The plan that `first_plan` returned for the first filter; None if this call is the
            first filter.
        of_update: Whether the weight is an update, which is what training added. If so, a later
            filter may keep more directions than the first, and an update without spikes becomes
            zero.

    Returns:
        The decision (see `Decision`). A whole weight without spikes is not changed, because nothing
        would be left of it.
    """
    if first is None:
        result = compress_weight(name, weight, settings)
        return _zeroed(result, weight) if of_update else result
    result = _again(name, weight, settings, first, of_update)
    lost = max(result.plan.dropped_energy, first.dropped_energy)
    return replace(result, plan=replace(result.plan, dropped_energy=lost))


def first_plan(result: Decision, settings: CompressionSettings) -> LayerPlan | None:
    """The plan of a weight's first filter (the removal of its noise), for later filters.

    The rank in it is the number of directions (singular values with their vectors) that the first
    filter kept. The result is None if this filter changed nothing, or if its method does not use
    the singular values of the weight.
    """
    if result.fit is None or result.plan.outcome is Outcome.KEPT:
        return None
    return replace(result.plan, rank=len(kept_directions(result.fit, settings, result.plan.name)))


def _zeroed(result: Decision, update: Tensor) -> Decision:
    """Replace the decision to keep an update without signal by the decision to set it to zero.

    An update is what training added to a weight. It has no signal if none of its singular values
    stands out. Any other decision `result` is returned as it is.
    """
    if result.plan.cause is not Cause.NO_SIGNAL:
        return result
    plan = replace(
        result.plan, outcome=Outcome.REWRITTEN, noise="drop", dropped_energy=1.0, reason=NO_UPDATE
    )
    return replace(result, plan=plan, rewritten=torch.zeros_like(update))


def _again(
    name: str, weight: Tensor, settings: CompressionSettings, first: LayerPlan, of_update: bool
) -> Decision:
    """Remove the noise of a weight, or of its update, once more, and return the decision.

    `filter_weight` explains the arguments.
    """
    method = method_of(settings)
    if not (isinstance(method, SpectralMethod) and method.chooses_directions):
        return compress_weight(name, weight, settings)
    once = settings.replace(recover_spikes=False)
    if settings.noise != "drop" or not torch.isfinite(weight).all():
        return compress_weight(name, weight, once)
    return _project(name, weight, once, first, of_update)


def _project(
    name: str, weight: Tensor, settings: CompressionSettings, first: LayerPlan, of_update: bool
) -> Decision:
    """Keep the largest directions (singular values with their vectors) of a filtered weight.

    The first filter removed the noise and chose how many directions to keep. The same number is
    kept now. It may grow only for an update, which is what training added to a weight. A filtered
    weight has nearly low rank. Its singular values are computed in float64, because float32 is not
    precise enough for that. `filter_weight` explains the arguments.
    """
    values, basis = eigensystem(gram(weight.to(torch.float64)))
    values = without_rounding(values, RELATIVE_NULL[torch.float64])
    fit = fit_spectrum(values, (weight.shape[0], weight.shape[1]), settings)
    rank = first.rank
    if of_update and fit.phase != Phase.DEGENERATE:
        rank = max(rank, len(kept_directions(fit, settings, name)))
    found, kept = Decomposition(fit, basis), torch.arange(rank)
    result = spectral_method_of(settings).cut(name, weight, found, settings, kept)
    plan = replace(
        result.plan,
        phase=first.phase,
        n_spikes=first.n_spikes,
        upper_edge=first.upper_edge,
        reason=first.reason,
    )
    return replace(result, plan=plan)
