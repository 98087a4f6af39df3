"""The quantizer, which compresses one weight at a time while `from_pretrained` loads a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps

from hf_rmt.compression.apply import apply_decision
from hf_rmt.compression.execution.threads import suited_threads
from hf_rmt.compression.execution.undisturbed import undisturbed
from hf_rmt.compression.summary import compression_report, report_on
from hf_rmt.compression.targets.coverage import kept_plans, with_kept
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.compat import mark_loaded
from hf_rmt.huggingface.conclude import attach, conclude, lay_out
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.loader import RMTLoader
from hf_rmt.nn.counterparts import compressed_layers, undoing
from hf_rmt.nn.dense_matrix import to_matrix, to_weight
from hf_rmt.plan import CompressionPlan, LayerPlan, Outcome
from hf_rmt.settings import CompressionSettings, method_of
from hf_rmt.spectra import SpectrumFit


class RMTQuantizer(RMTLoader):
    """Compresses a model while it loads, or reloads a compressed one, and makes the model savable.

    `model.compression_report` says what was decided. A model in which nothing was replaced stays a
    plain model, without a quantizer.
    """

    quantization_config: RMTConfig
    pre_quantized: bool

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse to offload weights while compressing, because each must be in memory for that."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        offloads = "disk" in places or ("cpu" in places and len(places) > 1)
        if offloads and not self.pre_quantized:
            raise ValueError(
                f"device_map={device_map} offloads weights, and offloaded weights cannot be "
                "compressed while they load; load without offloading, save_pretrained, and "
                "offload the saved model"
            )

    def _process_model_before_weight_loading(
        self,
        model: nn.Module,
        checkpoint_files: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super()._process_model_before_weight_loading(model, checkpoint_files, **kwargs)
        if not self.pre_quantized:
            _check_on_the_fly(self.quantization_config)
            names = compressible_layers(model, self.quantization_config)
            self.kept = kept_plans(model, self.quantization_config)
            self.pending = {f"{name}.weight": name for name in names}
            self.decisions: dict[str, tuple[LayerPlan, SpectrumFit | None]] = {}

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether a checkpoint tensor is a weight to compress."""
        return not self.pre_quantized and param_name in self.pending

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that compresses one weight."""
        return _CompressWeight(self)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        super()._process_model_after_weight_loading(model, **kwargs)
        if self.pre_quantized:
            plan = CompressionPlan.from_dict(self.quantization_config.layers or {})
            model.compression_report = report_on(model, plan)
            attach(model, self.quantization_config, model.compression_report)
            lay_out(model, self.quantization_config)
            return
        ordered = [self.decisions[name] for name in self.pending.values() if name in self.decisions]
        report = with_kept(compression_report(ordered, model), self.kept, model)
        conclude(model, self.quantization_config, report)


def _check_on_the_fly(config: CompressionSettings) -> None:
    """Refuse methods that need calibration batches, because there are none while weights load."""
    if why := method_of(config).why_data(config):
        raise ValueError(f"the weights are compressed while the model loads, but {why}")


def layers_left(model: Any, config: RMTConfig) -> list[str]:
    """Names of the layers that a config selects, in a model that may be partly compressed.

    Raises:
        ValueError: If a selected layer is compressed already, `target_modules` of the config
            matches no layer, or no layer is left to compress.
    """
    before = compressed_layers(model)
    if not before:
        return compressible_layers(model, config)
    try:  # select as the first time: compressed layers must look like the dense ones that they were
        for name, part in before.items():
            model.set_submodule(name, part.dense_outline())
        names = compressible_layers(model, config)
    finally:
        for name, part in before.items():
            model.set_submodule(name, part)
    if both := [name for name in names if name in before]:
        remedy = f"run {undoing(model)} first, or name other layers in target_modules"
        raise quantized_already(f"layer {both[0]!r}", config.quant_method, remedy)
    return names


def quantized_already(name: str, method: object, remedy: str) -> ValueError:
    """The error to raise for a model or layer, called `name`, that is quantized already.

    `remedy` says what the user can do instead of loading the original model.
    """
    return ValueError(
        f"{name} is quantized already with {method!r}; load the original model, or {remedy}"
    )


class _CompressWeight(ConversionOps):
    """The operation that transformers calls for each weight to compress while a model loads.

    It puts the compressed layer into the model, so the dense weight is not loaded.
    """

    def __init__(self, quantizer: RMTQuantizer) -> None:
        self.quantizer = quantizer

    @undisturbed
    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str,
        model: nn.Module,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Compress one weight, and return what transformers loads in its place.

        `input_dict` holds the weight. If the layer was replaced by a compressed layer, the result
        is an empty dict. Otherwise it holds the weight, perhaps with new values.
        """
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, list) else value
        name = self.quantizer.pending[full_layer_name]
        dense = model.get_submodule(name)
        matrix = to_matrix(dense, weight)
        with suited_threads(matrix.shape):  # so that the bits are those of `compress`
            result = compress_weight(name, matrix, self.quantizer.quantization_config)
            plan = result.plan
            if plan.outcome is Outcome.REPLACED:
                plan = apply_decision(model, result, matrix)
        self.quantizer.decisions[name] = (plan, result.fit)
        if result.rewritten is not None:
            return {full_layer_name: to_weight(dense, result.rewritten)}
        if result.plan.outcome is not Outcome.REPLACED:
            return {full_layer_name: weight}
        mark_loaded(model.get_submodule(name))
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}
