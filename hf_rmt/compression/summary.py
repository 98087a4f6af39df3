"""Reports what was found and done for all layers: spectra, plans, times and losses.

The spectrum of a weight is the list of its squared singular values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from hf_rmt.compression.execution.threads import layer_map
from hf_rmt.compression.latency import latency_ratio
from hf_rmt.compression.spectrum import spectrum
from hf_rmt.nn.counterparts import compressed_layers, weight_matrix
from hf_rmt.nn.layers.spiked_conv import geometry_of
from hf_rmt.plan import NOTABLE_LOSS, SPIKED, CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport, LayerSpectrum, Sizes, SpectralReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit

logger = logging.getLogger(__name__)


def analyze_layers(
    model: Any, names: list[str], settings: CompressionSettings | None = None
) -> SpectralReport:
    """Report how the spectrum of each layer's weight splits into signal and noise.

    The spectrum of a weight is the list of its squared singular values; `hf_rmt.spectra` explains
    signal and noise. For a compressed layer, the weight is the dense (not compressed) weight that
    gives the same outputs.
    """
    settings = settings or CompressionSettings()

    def work(name: str) -> LayerSpectrum:
        weight = weight_matrix(model.get_submodule(name))
        shape = (weight.shape[0], weight.shape[1])
        return LayerSpectrum(name, shape, spectrum(weight, settings))

    layers = [model.get_submodule(name) for name in names]
    with closing(layer_map(layers, settings)(work, names)) as found:
        return SpectralReport(tuple(tqdm(found, "Analysing", len(names), disable=None)))


def compression_report(
    decisions: Iterable[tuple[LayerPlan, SpectrumFit | None]], model: Any
) -> CompressionReport:
    """The report on what was decided for each layer of a model.

    Args:
        decisions: The plan of each layer with the `SpectrumFit` of its weight (the squared singular
            values, split into signal and noise), or with None if they were not split.
        model: The model, before or after the plans are carried out.
    """
    decisions = list(decisions)
    spectra = [LayerSpectrum(plan.name, plan.shape, fit) for plan, fit in decisions if fit]
    return report_on(model, CompressionPlan(tuple(plan for plan, _ in decisions)), spectra)


def report_on(
    model: Any, plan: CompressionPlan, spectra: Sequence[LayerSpectrum] = ()
) -> CompressionReport:
    """The report on the layers of a plan, with the size of the model.

    The times of compressed layers are measured only when the report is printed, or by
    `report.timed()`.

    Args:
        model: The model, before or after the plan is carried out.
        plan: The plan, in which layers have the same names as in this model.
        spectra: The squared singular values of the weights, as far as they were split into signal
            and noise; see `hf_rmt.spectra`.
    """
    like = next(model.parameters(), torch.empty(0))
    geometries = {layer.name: geometry_of(model.get_submodule(layer.name)) for layer in plan}
    return CompressionReport(
        plan,
        SpectralReport(tuple(spectra)) if spectra else None,
        sizes=_sizes(plan, model),
        clock=partial(with_latencies, dtype=like.dtype, device=like.device, geometries=geometries),
    )


def _sizes(plan: CompressionPlan, model: Any) -> Sizes:
    """The bytes of the saved model before and after compression, and its number of parameters.

    The parameters are counted as in the dense model.
    """
    state = model.state_dict(keep_vars=True)  # a second one may pack its codes anew
    tensors = {id(tensor): tensor for tensor in state.values()}
    for layer in plan.compressed:
        for name in model.get_submodule(layer.name).state_dict():
            if name != "bias":  # the plan has the bits in the file; factors take more in memory
                tensors.pop(id(state.get(f"{layer.name}.{name}")), None)
    others = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    before = others + sum(layer.dense_bits for layer in plan.compressed) // 8
    after = others + sum(layer.bits for layer in plan.compressed) // 8
    return Sizes(file=(before, after), model_parameters=model_parameters(model))


def model_parameters(model: nn.Module) -> int:
    """The number of parameters of the dense model; a shared parameter counts once.

    Args:
        model: The model, dense or with compressed layers.
    """
    layers = compressed_layers(model).values()
    factors = {id(layer._parameters.get("weight")) for layer in layers}
    others = sum(part.numel() for part in model.parameters() if id(part) not in factors)
    return others + sum(layer.in_features * layer.out_features for layer in layers)


def with_latencies(
    plan: CompressionPlan,
    *,
    dtype: torch.dtype,
    device: torch.device,
    geometries: Mapping[str, Mapping[str, Any]],
) -> CompressionPlan:
    """Measure the times of compressed layers, and return the plan with these times.

    A time is divided by the time of the dense layer. Ternary layers (entries -1, 0 and 1) are not
    measured. Layers with the same shape, `noise` and geometry (stride, padding and so on) are
    measured once, at the largest `rank` among them. `LayerPlan` explains `noise` and `rank`.

    Args:
        plan: The plan without times.
        dtype: The dtype of the model.
        device: The device of the model.
        geometries: The arguments of each convolution, such as stride and padding, by layer name;
            empty for a linear layer.
    """
    timed = [layer for layer in plan.compressed if layer.kind == SPIKED]
    keys = {
        layer.name: (layer.shape, layer.noise, *geometries[layer.name].values()) for layer in timed
    }
    widest = {keys[layer.name]: layer for layer in sorted(timed, key=lambda layer: layer.rank)}
    ratios = {
        key: latency_ratio(
            layer.shape,
            layer.rank,
            layer.noise,
            geometry=geometries[layer.name],
            dtype=dtype,
            device=device,
        )
        for key, layer in widest.items()
    }
    return CompressionPlan(
        tuple(
            replace(layer, latency=ratios[keys[layer.name]]) if layer.name in keys else layer
            for layer in plan
        )
    )


def warn_of_loss(plan: CompressionPlan) -> None:
    """Log one warning if the plan drops more than `NOTABLE_LOSS` of the weights' squared norm."""
    if plan.dropped_energy > NOTABLE_LOSS:
        logger.warning(
            "%.0f %% of the energy of %d changed layers was dropped: fine-tune a pretrained model "
            "now, or keep its outputs: compress it with noise='int8' and without recover_spikes",
            100 * plan.dropped_energy,
            len(plan.changed),
        )
