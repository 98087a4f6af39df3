"""Analysing and compressing the linear layers of a loaded torch model.

A tensor's way: one dense weight, its decomposition, the plan of its layer, the factors and the
noise that is left, a `SpikedLinear`. Only one weight is in flight at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_rmt.decompose import decompose, spectrum
from hf_rmt.nn import SpikedLinear, latency_ratio, stored_bits
from hf_rmt.plan import NOTABLE_LOSS, CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport, LayerSpectrum, SpectralReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import Phase, SpectrumFit

logger = logging.getLogger(__name__)

FAIR_RETURN = {"int8": 0.0, "int4": 1 / 4, "ternary": 1 / 4}
"""A spike is stored if it saves at least this part of the bits that its factors cost; the first
always is. Errors of the weight alone would ask for a whole return, but inputs excite the strongest
directions more than the others: on the trained BERT and ViT the similarities of embeddings gained
by spikes that return a quarter, and 8-bit noise, whose own error is so small, gained by them all
(`recipes/bench_fidelity.py`)."""
MOST_STORED = 1 / 9
"""Of a weight's directions beside packed noise; where more stand out the tail is heavy, and factors
would cost more than what they return. It keeps the trained BERT at 10.5 bits a weight."""
FACTOR_BITS = 16
"""Of an entry of a factor beside packed noise: it is saved in bfloat16."""
NOTHING_LEFT = "no signal stands out from the noise, nothing would be left"
"""Reason for which a layer stays dense though its noise was to be dropped."""


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
    """

    plan: LayerPlan
    fit: SpectrumFit | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    recovery: Tensor | None = None
    filtered: Tensor | None = None

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
    if min(weight.shape) < settings.min_size:
        reason = f"smaller side {min(weight.shape)} below min_size={settings.min_size}"
        return CompressedWeight(_dense_plan(name, weight, reason))
    try:
        decomposition = decompose(weight, method=settings.method)
    except torch.linalg.LinAlgError as error:
        return CompressedWeight(_dense_plan(name, weight, f"no eigenvalues: {error}"))
    fit = decomposition.fit
    if fit.phase == Phase.DEGENERATE:
        return CompressedWeight(_dense_plan(name, weight, fit.reason, phase=fit.phase), fit)
    kept = kept_directions(fit, settings)
    if settings.noise == "drop" and len(kept) == 0:
        return CompressedWeight(_dense_plan(name, weight, NOTHING_LEFT, phase=fit.phase), fit)
    plan = plan_layer(name, weight, fit, kept, settings)
    if not plan.compressed and plan.dropped_energy == 0:
        return CompressedWeight(plan, fit)
    left, right = decomposition.factors(weight, kept)
    recovery = decomposition.recovery(kept).to(left) if settings.recovers_spikes else None
    if not plan.compressed:
        return CompressedWeight(plan, fit, filtered=_scaled(left, recovery) @ right)
    return CompressedWeight(plan, fit, left, right, recovery)


def replace_linear(model: Any, result: CompressedWeight, weight: Tensor) -> None:
    """Put a decision into effect on the linear layer it was made for.

    Args:
        model: The model that holds the layer.
        result: The decision.
        weight: The dense weight it was made from.
    """
    linear = model.get_submodule(result.plan.name)
    if result.plan.compressed:
        module = result.module(weight, linear.bias)
        model.set_submodule(result.plan.name, module.train(linear.training))
    elif result.filtered is not None:
        linear.weight.data.copy_(result.filtered)


def analyze_layers(model: Any, names: list[str]) -> SpectralReport:
    """Fitted spectra of linear layers; a compressed layer is analysed as it acts."""
    layers = []
    for name in tqdm(names, desc="Analysing", disable=None):
        module: Any = model.get_submodule(name)
        weight = module.dense() if isinstance(module, SpikedLinear) else module.weight
        shape = (module.out_features, module.in_features)
        layers.append(LayerSpectrum(name, shape, spectrum(weight.detach())))
    return SpectralReport(tuple(layers))


def compression_report(
    decisions: Iterable[tuple[LayerPlan, SpectrumFit | None]], like: Tensor
) -> CompressionReport:
    """Report of a model's decisions, with latencies for the device and dtype of a tensor."""
    decisions = list(decisions)
    spectra = [LayerSpectrum(plan.name, plan.shape, fit) for plan, fit in decisions if fit]
    plans = _with_latencies([plan for plan, _ in decisions], like)
    return CompressionReport(CompressionPlan(plans), SpectralReport(tuple(spectra)))


def _with_latencies(plans: list[LayerPlan], like: Tensor) -> tuple[LayerPlan, ...]:
    """The plans with the time of each compressed layer over its dense one, measured now.

    Layers of one shape are measured once, at their largest rank.
    """
    ranks: dict[tuple[tuple[int, int], str], int] = {}
    for plan in plans:
        if plan.compressed:
            key = (plan.shape, plan.noise)
            ranks[key] = max(ranks.get(key, 0), plan.rank)
    ratios = {
        (shape, noise): latency_ratio(shape, rank, noise, dtype=like.dtype, device=like.device)
        for (shape, noise), rank in ranks.items()
    }
    return tuple(
        replace(plan, latency=ratios[plan.shape, plan.noise]) if plan.compressed else plan
        for plan in plans
    )


def warn_of_loss(plan: CompressionPlan) -> None:
    """Say once how much energy was dropped, where that is much."""
    if plan.dropped_energy > NOTABLE_LOSS:
        logger.warning(
            "noise='drop' removed %.0f %% of the energy of %d layers: a pretrained model needs "
            "fine-tuning after that; noise='int8' keeps its outputs",
            100 * plan.dropped_energy,
            len(plan.changed),
        )


def _scaled(left: Tensor, recovery: Tensor | None) -> Tensor:
    return left if recovery is None else left * recovery


def _dense_plan(name: str, weight: Tensor, reason: str, *, phase: str = "") -> LayerPlan:
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


def kept_directions(fit: SpectrumFit, settings: CompressionSettings) -> Tensor:
    """Positions of the directions that become factors, ascending, shape (rank,)."""
    signal = torch.from_numpy(fit.is_signal)
    kept = torch.nonzero(signal).flatten()[: settings.max_rank]
    if not settings.stores_all_spikes:
        most = int(MOST_STORED * len(fit.eigenvalues))
        return kept[: min(most, _paying_rank(fit, FAIR_RETURN[settings.noise]))]
    if settings.noise == "drop" and settings.noise_removal < 1:
        noise = torch.nonzero(~signal).flatten()
        stays = round((1 - settings.noise_removal) * len(noise))
        kept = torch.cat([kept, noise[:stays]]).sort().values[: settings.max_rank]
    return kept


def _paying_rank(fit: SpectrumFit, fair_return: float) -> int:
    """How many leading directions save that part of the bits that their factors cost.

    Taking a fraction f of the energy out of the noise makes its entries (1 - f)^{1/2} as large,
    which at equal error is worth -log2(1 - f) / 2 bits on every weight.
    """
    tiny, (rows, columns) = np.finfo(float).tiny, fit.shape
    rest = np.maximum(np.cumsum(fit.eigenvalues[::-1])[::-1], tiny)
    left_over = np.append(rest[1:], tiny) / rest
    gain = -0.5 * np.log2(np.maximum(left_over, tiny))
    pays = gain > fair_return * FACTOR_BITS * (rows + columns) / (rows * columns)
    return max(1, int(np.argmin(pays)) if not pays.all() else len(pays))


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
        upper_edge=fit.upper_edge,
        signal_energy=energy,
        dropped_energy=dropped,
        bits=bits if smaller else dense_bits,
        dense_bits=dense_bits,
        reason=fit.reason if smaller else too_large,
    )
