"""Loads and saves compressed models, and makes them dense; it cannot compress.

This module is part of `hf_rmt_remote.py`, the code file that is saved with a compressed model. So
it must not import the modules that compress.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from hf_rmt.huggingface.saving.alarm import without_alarm
from hf_rmt.huggingface.saving.integrity import (
    check_found,
    check_none_extra,
    check_none_left,
    check_one_save,
    check_types,
    check_values,
    kinds_of_tensors,
    names_of_tensors,
)
from hf_rmt.huggingface.saving.record import CompressionRecord, drop_records
from hf_rmt.nn.counterparts import densify, empty_layer, paired_name, place_step
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.swap import swap_module
from hf_rmt.plan.plans import CompressionPlan, LayerPlan

PART = "_rmt_part"
"""Name of the attribute in which a part of a model keeps how its layers were compressed. The part
is itself a transformers model."""

REPLACED = ("save_pretrained", "push_to_hub", "resize_token_embeddings", "tie_weights")
"""Names of the methods that are replaced on each compressed model, so that it saves its own layers
and refuses wrong changes."""


class RMTLoader(HfQuantizer):
    """Builds the compressed layers that a config records, before transformers loads their weights.

    It works on any device.
    """

    quantization_config: CompressionRecord
    pre_quantized: bool
    given_state: dict[str, torch.Tensor] | None = None

    def __init__(self, quantization_config: CompressionRecord, **kwargs: Any) -> None:
        super().__init__(copy.deepcopy(quantization_config), **kwargs)
        if self.pre_quantized and self.quantization_config.layers is None:
            raise ValueError(
                "this model's config says quant_method 'rmt' but records no layers; it was not "
                "written by save_pretrained, so remove quantization_config from config.json"
            )

    @property
    def is_trainable(self) -> bool:
        """True, because the signal (low-rank factors) and all dense layers can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True, because training is allowed; only the stored noise (see `NoiseStore`) is frozen."""
        return True

    def is_serializable(self) -> bool:
        """True, because compressed models are saved as they are."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Remove from a config the alarm, a text that `hf_rmt.huggingface.saving.alarm` explains.

        The text stands where the config names the attention implementation.
        """
        config._attn_implementation = without_alarm(config._attn_implementation)
        return config

    def _process_model_before_weight_loading(
        self,
        model: nn.Module,
        checkpoint_files: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self.pre_quantized:
            return
        record, files = self.quantization_config, list(checkpoint_files or [])
        plan = CompressionPlan.from_dict(record.layers or {})
        plan = runtime_names(model, plan, files)
        for layer in plan:
            put_recorded(model, layer)
        check_one_save(record, files)
        check_types(files)
        record.layers = plan.to_dict()
        drop_records(getattr(model, "config", None), parts_only=True)
        self.where = " or ".join(Path(file).name for file in files[:3]) or "the state dict"
        self.expected = kinds_of_tensors(model)
        _watch_missing(model, self.where)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            check_values(model, self.expected, self.where)

    def get_state_dict_and_metadata(
        self, model: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The state dict to save, and empty metadata.

        Low-rank factors are in bfloat16 if this changes no value. If `given_state` is set, it is
        used instead of the model's own state dict.
        """
        state = dict(model.state_dict() if self.given_state is None else self.given_state)
        record = self.quantization_config
        record.digest = record.files = record.code = None  # they described the loaded files
        for name, module in model.named_modules():
            key = f"{name}.weight"
            if isinstance(module, SpikedLinear) and key in state:
                state[key] = _halved_if_exact(state[key])
        return state, {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        # save_pretrained leaves the dtype's name, not the dtype, in the model's config
        densify(model, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        uninstall_saving(model)
        for part in model.modules():
            part.__dict__.pop("compression_report", None)  # its layers are gone
        return model


def uninstall_saving(model: Any) -> None:
    """Undo `install_saving`: the model saves as its class does, and its config has no record.

    A record says how each layer was compressed.
    """
    for name in REPLACED:
        model.__dict__.pop(name, None)
    drop_records(model.config)
    for part in model.modules():
        part.__dict__.pop(PART, None)


def put_recorded(model: nn.Module, layer: LayerPlan) -> None:
    """Replace a dense layer of a model by an empty compressed layer, as its record says.

    The record is `layer`. The values of the new layer are loaded later. If the record has a step
    activation (see `StepActivation`), it is put into the model too.

    Raises:
        ValueError: If the record does not fit the layer. The error names the layer and the reason.
    """
    try:
        if layer.compressed:
            dense = model.get_submodule(layer.name)
            empty: Any = empty_layer(dense, layer)
            empty._is_hf_initialized = True  # otherwise the model would initialise a dense one
            swap_module(model, layer.name, empty)
        if layer.step is not None:
            place_step(model, layer.name, layer.step)
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"config.json, layer {layer.name!r}: {error}") from error


def _watch_missing(model: Any, where: str) -> None:
    """Make transformers call our check of the loaded files before it fills in missing tensors.

    Without this check, missing tensors would get random numbers. The check is the function
    `_found_all`. `where` is the names of the files, for its error messages.
    """
    model.mark_tied_weights_as_initialized = partial(_found_all, model, where)


def _found_all(model: Any, where: str, info: Any) -> None:
    del model.__dict__["mark_tied_weights_as_initialized"]
    try:
        check_found(model, info.missing_and_mismatched(), where)
        check_none_extra(model, info.unexpected_keys, where)
        check_none_left(info.mismatched_keys, where)
    except ValueError:
        info.mismatched_keys.clear()  # otherwise transformers raises its own error
        info.conversion_errors.clear()
        raise
    model.mark_tied_weights_as_initialized(info)


def runtime_names(
    model: nn.Module, plan: CompressionPlan, files: Iterable[str] = ()
) -> CompressionPlan:
    """Find in a model the compressed layers that a saved model recorded.

    The model may have another head (the last layers, for a task) than the saved model, or none.

    Args:
        model: A transformers model.
        plan: The recorded layers, with their names in the saved model.
        files: The files with the weights. They tell whether the saved model had a head. If only
            this head was compressed, a model without it has none of the recorded layers.

    Returns:
        The recorded layers that this model has, by their names in this model.

    Raises:
        ValueError: If this model has none of the recorded layers, although it should have some.
    """
    modules = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "")
    found = []
    for layer in plan:
        if (here := paired_name(layer.name, prefix, modules)) is not None:
            found.append(replace(layer, name=here))
    is_base = any(name.startswith(f"{prefix}.") for name in names_of_tensors(files))
    only_heads = is_base and not any(layer.name.startswith(f"{prefix}.") for layer in plan)
    if len(plan) and not found and not only_heads:
        raise ValueError(
            f"none of the {len(plan)} recorded layers, such as {plan.layers[0].name!r}, exists in "
            f"{type(model).__name__}; load the model with the class it was saved from"
        )
    return CompressionPlan(tuple(found))


def _halved_if_exact(weight: torch.Tensor) -> torch.Tensor:
    half = weight.to(torch.bfloat16)
    exact = weight.device.type != "meta" and torch.equal(half.to(weight.dtype), weight)
    return half if exact else weight
