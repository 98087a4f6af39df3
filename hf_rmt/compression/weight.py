"""Analysing and compressing the weights of a loaded torch model.

A tensor's way: one dense weight as a matrix, its decomposition, the plan of its layer, the factors
and the noise that is left, a `SpikedLinear`. Only one weight is in flight at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from hf_rmt.compression.directions import kept_directions
from hf_rmt.compression.spectrum import Decomposition, decompose, load_code, taken
from hf_rmt.nn import SpikedLinear, stored_bits
from hf_rmt.plan import LayerPlan
from hf_rmt.settings import METHOD_TABLE, CompressionSettings
from hf_rmt.spectra import Phase, SpectrumFit

NOTHING_LEFT = "no signal stands out from the noise, nothing would be left"
"""Reason for which a layer stays dense though its noise was to be dropped."""
ZEROS_IN_PLACE = "entries were zeroed in place, and zeros save no memory by themselves"
"""Reason for which a pruned layer stays dense."""


@dataclass(frozen=True)
class CompressedWeight:
    """A weight after the decision.

    Attributes:
        plan: What was decided.
        fit: The spectrum; None for a weight too small to look at.
        left: Factor of shape (out, rank); None for a layer that stays dense.
        right: Factor of shape (rank, in).
        recovery: What the singular values are multiplied with, shape (rank,); None for nothing.
        filtered: New dense weight, where factors would be larger than it; usually None.
        mean_input: Mean input of a layer with a bias, which is to keep the mean output, shape
            (in,); None where none was measured.
        bias_shift: What the bias gains where that was worked out already, shape (out,).
    """

    plan: LayerPlan
    fit: SpectrumFit | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    recovery: Tensor | None = None
    filtered: Tensor | None = None
    mean_input: Tensor | None = None
    bias_shift: Tensor | None = None

    def module(self, weight: Tensor, bias: Tensor | None) -> SpikedLinear:
        """The compressed layer of the weight that was decided on; it shares the bias."""
        if self.left is None or self.right is None:
            raise ValueError(f"{self.plan.name} stays dense: {self.plan.reason}")
        layer = SpikedLinear.from_factors(
            self.left, self.right, weight, bias, noise=self.plan.noise
        )
        if self.recovery is not None:
            layer.scale_signal(self.recovery)
        return layer


def compress_weight(name: str, weight: Tensor, settings: CompressionSettings) -> CompressedWeight:
    """Decide what happens to one weight and factor its signal.

    Args:
        name: Runtime name of the module.
        weight: Shape (out, in), on any device; it is not changed.
        settings: What the user asked for.

    Returns:
        The plan and, for a compressed layer, factors with left @ right the stored signal.
    """
    if decide := METHOD_TABLE[settings.method].decide:
        return load_code(decide)(name, weight, settings)
    if reason := _why_untouched(name, weight, settings):
        return CompressedWeight(dense_plan(name, weight, reason))
    try:
        decomposition = decompose(weight, settings)
    except torch.linalg.LinAlgError as error:
        return CompressedWeight(dense_plan(name, weight, f"no eigenvalues: {error}"))
    fit = decomposition.fit
    if fit.phase == Phase.DEGENERATE:
        return CompressedWeight(dense_plan(name, weight, fit.reason, phase=fit.phase), fit)
    if METHOD_TABLE[settings.method].prune:
        return _pruned(name, weight, fit, settings)
    kept = kept_directions(fit, settings, name)
    if settings.noise == "drop" and len(kept) == 0:
        return CompressedWeight(dense_plan(name, weight, NOTHING_LEFT, phase=fit.phase), fit)
    return keep_directions(name, weight, decomposition, kept, settings)


def keep_directions(
    name: str,
    weight: Tensor,
    decomposition: Decomposition,
    kept: Tensor,
    settings: CompressionSettings,
) -> CompressedWeight:
    """Factor the chosen directions of a weight.

    Args:
        name: Runtime name of the module.
        weight: Shape (out, in).
        decomposition: Of this weight.
        kept: Positions of the directions, ascending, shape (rank,).
        settings: What the user asked for.

    Returns:
        The plan with the factors, or with the weight that they make where that is smaller.
    """
    fit, row = decomposition.fit, METHOD_TABLE[settings.method]
    plan = plan_layer(name, weight, fit, kept, settings)
    if not plan.compressed and plan.dropped_energy == 0 and not row.refine:
        return CompressedWeight(plan, fit)
    left, right = decomposition.factors(weight, kept)
    if row.refine:
        left, right = load_code(row.refine)(left, right, weight)
        plan = _with_zeros(plan, weight, left @ right, (left, right))
    recovery = decomposition.recovery(kept).to(left) if settings.recovers_spikes else None
    if not plan.compressed:
        return CompressedWeight(plan, fit, filtered=_scaled(left, recovery) @ right)
    return CompressedWeight(plan, fit, left, right, recovery)


def _why_untouched(name: str, weight: Tensor, settings: CompressionSettings) -> str:
    """Reason for which a layer is not looked at; empty if it is."""
    if min(weight.shape) < settings.min_size:
        return f"smaller side {min(weight.shape)} below min_size={settings.min_size}"
    return "" if settings.removal(name) is not None else "noise_removal names other layers"


def _pruned(
    name: str, weight: Tensor, fit: SpectrumFit, settings: CompressionSettings
) -> CompressedWeight:
    """A weight that loses entries, not directions; any process draws the same for one layer."""
    generator = np.random.default_rng([settings.seed, crc32(name.encode())])
    prune = load_code(METHOD_TABLE[settings.method].prune)
    pruned = prune(weight, **taken(settings), generator=generator)
    plan = dense_plan(name, weight, ZEROS_IN_PLACE, phase=fit.phase)
    return CompressedWeight(_with_zeros(plan, weight, pruned, (pruned,)), fit, filtered=pruned)


def _with_zeros(
    plan: LayerPlan, weight: Tensor, new: Tensor, stored: tuple[Tensor, ...]
) -> LayerPlan:
    """The plan with what a weight keeps that is not cut along its singular directions."""
    total, kept, lost = (
        float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
        for part in (weight, new, weight - new)
    )
    tensors = stored if plan.compressed else (new,)
    return replace(
        plan,
        signal_energy=kept / total,
        dropped_energy=lost / total,
        nonzero=sum(int(tensor.count_nonzero()) for tensor in tensors),
    )


def _scaled(left: Tensor, recovery: Tensor | None) -> Tensor:
    return left if recovery is None else left * recovery


def dense_plan(name: str, weight: Tensor, reason: str, *, phase: str = "") -> LayerPlan:
    """The plan of a layer that stays dense, and why."""
    bits = weight.numel() * weight.element_size() * 8
    return LayerPlan(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        compressed=False,
        phase=str(phase),
        bits=bits,
        dense_bits=bits,
        reason=reason,
    )


def plan_layer(
    name: str, weight: Tensor, fit: SpectrumFit, kept: Tensor, settings: CompressionSettings
) -> LayerPlan:
    """The layer's plan; it stays dense where factors and codes would not be smaller."""
    shape, rank = (weight.shape[0], weight.shape[1]), len(kept)
    energy = float(fit.eigenvalues[kept.numpy()].sum() / fit.eigenvalues.sum())
    dropped = 1 - energy if settings.noise == "drop" else 0.0
    dense_bits = weight.numel() * weight.element_size() * 8
    bits = stored_bits(shape, rank, settings.noise, dtype=weight.dtype)
    smaller = bits < dense_bits or settings.noise == "keep"
    too_large = f"rank {rank} takes {bits / weight.numel():.1f} bits a weight, dense is smaller"
    return LayerPlan(
        name=name,
        shape=shape,
        compressed=smaller,
        rank=rank if smaller else 0,
        noise=settings.noise if smaller else "keep",
        phase=str(fit.phase),
        n_spikes=fit.n_spikes,
        upper_edge=fit.upper_edge if fit.law is not None else None,
        signal_energy=energy,
        dropped_energy=dropped,
        bits=bits if smaller else dense_bits,
        dense_bits=dense_bits,
        reason=fit.reason if smaller else too_large,
    )
