"""The quantizer: one dense weight at a time, while `from_pretrained` reads the checkpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps

from hf_rmt.compression.apply import replace_layer, stored_tensors
from hf_rmt.compression.summary import compression_report, warn_of_loss
from hf_rmt.compression.targets import compressible_layers
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.card import hub_id
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.loader import RMTLoader, uninstall_saving
from hf_rmt.huggingface.saving import install_saving
from hf_rmt.nn.counterparts import COMPRESSED, dense_like, to_matrix, to_weight
from hf_rmt.plan import CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport, SpectralReport
from hf_rmt.settings import METHOD_TABLE, CompressionSettings
from hf_rmt.spectra import SpectrumFit

logger = logging.getLogger(__name__)


class RMTQuantizer(RMTLoader):
    """Compresses on the fly, reloads what was compressed, and makes both savable.

    A model in which nothing was replaced stays a plain one, without a quantizer: it has the report
    as `model.compression_report`.

    Attributes:
        report: What was decided when the model was compressed; None after a reload.
    """

    report: CompressionReport | None = None
    pre_quantized: bool

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse offloading on the fly: a weight must be at hand to be decomposed."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        offloads = "disk" in places or ("cpu" in places and len(places) > 1)
        if offloads and not self.pre_quantized:
            raise ValueError(
                f"device_map={device_map} offloads weights, which cannot be compressed while "
                "loading then; load without offloading, save_pretrained, and offload the saved "
                "model"
            )

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)
        if not self.pre_quantized:
            _check_on_the_fly(self.quantization_config)
            names = compressible_layers(model, self.quantization_config)
            self.pending = {f"{name}.weight": name for name in names}
            self.decisions: dict[str, tuple[LayerPlan, SpectrumFit | None]] = {}

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether a checkpoint tensor is a weight to compress."""
        return not self.pre_quantized and param_name in self.pending

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that compresses one weight."""
        return _CompressWeight(self)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            self._conclude(model)
        if stays_plain(self.quantization_config.layers or {}):
            self.remove_quantization_config(model)
            uninstall_saving(model)
            model.compression_report = self.report
        else:
            install_saving(model)

    def _conclude(self, model: Any) -> None:
        """Record what was decided; from now on the model is like one that was reloaded."""
        ordered = [self.decisions[name] for name in self.pending.values() if name in self.decisions]
        self.report = compression_report(ordered, model)
        self.quantization_config.layers = self.report.plan.to_dict()
        self.quantization_config.base_model = hub_id(model.config._name_or_path)
        self.pre_quantized = True
        warn_of_loss(self.report.plan)


def stays_plain(layers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether nothing was replaced, which is said with the reasons: any transformers loads it."""
    if any(entry["compressed"] or entry.get("step") for entry in layers.values()):
        return False
    reasons = Counter(entry.get("reason", "") for entry in layers.values())
    shown = "; ".join(f"{count} times: {reason}" for reason, count in reasons.most_common(3))
    logger.warning(
        "none of the %d layers was replaced (%s). The model stays a plain one, to be saved and "
        "loaded without hf_rmt",
        len(layers),
        shown,
    )
    return True


def _check_on_the_fly(config: CompressionSettings) -> None:
    """Refuse what takes activations, which nothing has while weights load."""
    if METHOD_TABLE[config.method].decide and (config.activation, config.weights) != (
        "keep",
        "trained",
    ):
        raise ValueError(
            f"method={config.method!r} with activation={config.activation!r} and "
            f"weights={config.weights!r} takes what the layers are given, which is not known while "
            "a model loads; set activation='keep' and weights='trained', or load the model and "
            "call hf_rmt.compress(model, config, calibration=batches)"
        )


def layers_left(model: Any, config: RMTConfig) -> list[str]:
    """Names as of `compressible_layers`, of a model in which others may be compressed already.

    Raises:
        ValueError: If one of them is compressed already, or as `compressible_layers` does.
    """
    if getattr(model, "hf_quantizer", None) is None:
        return compressible_layers(model, config)
    before = {name: part for name, part in model.named_modules() if isinstance(part, COMPRESSED)}
    try:  # to select as on the first time, compressed layers must look like what they were
        for name, part in before.items():
            model.set_submodule(name, dense_like(part).to("meta"))
        names = compressible_layers(model, config)
    finally:
        for name, part in before.items():
            model.set_submodule(name, part)
    if both := [name for name in names if name in before]:
        remedy = "model.dequantize() first, or name other layers in target_modules"
        raise quantized_already(f"layer {both[0]!r}", config.quant_method, remedy)
    return names


def quantized_already(name: str, method: object, remedy: str) -> ValueError:
    """The error that says so."""
    return ValueError(
        f"{name} is quantized already with {method!r}; load the original model, or {remedy}"
    )


def both_reports(model: Any, before: RMTQuantizer, report: CompressionReport) -> CompressionReport:
    """What two compressions did, in the model's order, with the spectra that are known."""
    layers = (before.quantization_config.layers or {}) | report.plan.to_dict()
    named = {name: layers[name] for name, _ in model.named_modules() if name in layers}
    plan = CompressionPlan.from_dict(named)
    spectra = [one.spectra for one in (before.report, report) if one and one.spectra]
    seen = {part.name: part for part in chain.from_iterable(spectra)}
    known = tuple(seen[layer.name] for layer in plan if layer.name in seen)
    return CompressionReport(plan, SpectralReport(known) if known else None)


class _CompressWeight(ConversionOps):
    """Turns a dense weight into a compressed layer of the model, and takes it off the load."""

    def __init__(self, quantizer: RMTQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str,
        model: nn.Module,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Compress the one weight in `input_dict`; returns it only if it stays dense."""
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, list) else value
        name = self.quantizer.pending[full_layer_name]
        dense = model.get_submodule(name)
        matrix = to_matrix(dense, weight)
        result = compress_weight(name, matrix, self.quantizer.quantization_config)
        self.quantizer.decisions[name] = (result.plan, result.fit)
        if result.filtered is not None:
            return {full_layer_name: to_weight(dense, result.filtered)}
        if not result.plan.compressed:
            return {full_layer_name: weight}
        replace_layer(model, result.plan, stored_tensors(result, matrix))
        _mark_loaded(model.get_submodule(name))
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}


def _mark_loaded(module: Any) -> None:
    """Tell transformers that factors and noise are not to be initialised."""
    module._is_hf_initialized = True
    for child in module.modules():
        for tensor in (*child._parameters.values(), *child._buffers.values()):
            if tensor is not None and tensor.device.type != "meta":
                tensor._is_hf_initialized = True
