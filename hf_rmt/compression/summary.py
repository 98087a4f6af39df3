"""What was found and done, of all layers together: spectra, plans with latencies, losses."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from hf_rmt.compression.latency import latency_ratio
from hf_rmt.compression.spectrum import spectrum
from hf_rmt.nn.counterparts import weight_matrix
from hf_rmt.nn.spiked_conv import geometry_of
from hf_rmt.plan import NOTABLE_LOSS, SPIKED, CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport, LayerSpectrum, SpectralReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit

logger = logging.getLogger(__name__)


def analyze_layers(
    model: Any, names: list[str], settings: CompressionSettings | None = None
) -> SpectralReport:
    """Fitted spectra of weights; a compressed layer is analysed as it acts."""
    layers = []
    for name in tqdm(names, desc="Analysing", disable=None):
        weight = weight_matrix(model.get_submodule(name))
        shape = (weight.shape[0], weight.shape[1])
        layers.append(LayerSpectrum(name, shape, spectrum(weight, settings)))
    return SpectralReport(tuple(layers))


def compression_report(
    decisions: Iterable[tuple[LayerPlan, SpectrumFit | None]], model: Any, *, latency: bool = True
) -> CompressionReport:
    """Report of the decisions on a model's layers, with latencies for its device and dtype.

    Args:
        decisions: What was decided, layer by layer.
        model: The model.
        latency: Whether to measure how long the compressed layers take.
    """
    decisions = list(decisions)
    spectra = [LayerSpectrum(plan.name, plan.shape, fit) for plan, fit in decisions if fit]
    plans = tuple(plan for plan, _ in decisions)
    plans = _with_latencies(list(plans), model) if latency else plans
    seen = SpectralReport(tuple(spectra)) if spectra else None
    return CompressionReport(CompressionPlan(plans), seen)


def _with_latencies(plans: list[LayerPlan], model: Any) -> tuple[LayerPlan, ...]:
    """The plans with the time of each compressed layer over its dense one, measured now.

    Layers of one shape and geometry are measured once, at their largest rank.
    """
    like = next(model.parameters())
    geometries = {plan.name: geometry_of(model.get_submodule(plan.name)) for plan in plans}
    compressed = [plan for plan in plans if plan.compressed and plan.kind == SPIKED]
    keys = {
        plan.name: (plan.shape, plan.noise, *geometries[plan.name].values()) for plan in compressed
    }
    widest = {keys[plan.name]: plan for plan in sorted(compressed, key=lambda plan: plan.rank)}
    ratios = {
        key: latency_ratio(
            plan.shape,
            plan.rank,
            plan.noise,
            geometry=geometries[plan.name],
            dtype=like.dtype,
            device=like.device,
        )
        for key, plan in widest.items()
    }
    return tuple(
        replace(plan, latency=ratios[keys[plan.name]]) if plan.name in keys else plan
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
