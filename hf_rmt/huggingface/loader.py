"""Loading, saving and undoing compressed models: the half of the quantizer that needs no maths.

A repository that was pushed carries this file, so it must not import the mathematics.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from hf_rmt.huggingface.record import CompressionRecord
from hf_rmt.nn.counterparts import densify, empty_layer, paired_name, place_step
from hf_rmt.nn.spiked import SpikedLinear
from hf_rmt.nn.swap import swap_module
from hf_rmt.plan import CompressionPlan, LayerPlan

ALARM = "import hf_rmt"
"""Saved as the attention implementation of config.json, which transformers without this package
does not know: it then raises an error that shows these words. The quantizer takes it out."""


class RMTLoader(HfQuantizer):
    """Rebuilds the compressed layers that a config records, on any device, before they load."""

    quantization_config: CompressionRecord
    pre_quantized: bool

    def __init__(self, quantization_config: CompressionRecord, **kwargs: Any) -> None:
        super().__init__(copy.deepcopy(quantization_config), **kwargs)
        if self.pre_quantized and self.quantization_config.layers is None:
            raise ValueError(
                "this model's config says quant_method 'rmt' but records no layers; it was not "
                "written by save_pretrained, so remove quantization_config from config.json"
            )

    @property
    def is_trainable(self) -> bool:
        """The signal and all that is not compressed can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Full training is allowed: the noise is frozen, nothing else is."""
        return True

    def is_serializable(self) -> bool:
        """Compressed models are saved as they are."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Take the alarm out again."""
        if config._attn_implementation == ALARM:
            config._attn_implementation = None
        return config

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        plan = CompressionPlan.from_dict(self.quantization_config.layers or {})
        plan = runtime_names(model, plan)
        for layer in plan:
            _put_recorded(model, layer)
        self.quantization_config.layers = plan.to_dict()

    def get_state_dict_and_metadata(
        self, model: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The state dict, with factors that bfloat16 holds exactly saved in it."""
        state = model.state_dict()
        for name, module in model.named_modules():
            key = f"{name}.weight"
            if isinstance(module, SpikedLinear) and key in state:
                state[key] = _halved_if_exact(state[key])
        return state, {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        # save_pretrained leaves the dtype's name, not the dtype, in the model's config
        densify(model, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        uninstall_saving(model)
        return model


def uninstall_saving(model: Any) -> None:
    """Give a model its class's own saving back, and a config that names no code."""
    for name in ("save_pretrained", "push_to_hub"):
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("auto_map", None)


def _put_recorded(model: nn.Module, layer: LayerPlan) -> None:
    """Put the recorded layer, with nothing in it yet, in the place of the dense one."""
    if layer.compressed:
        dense = model.get_submodule(layer.name)
        empty = empty_layer(dense, layer)
        swap_module(model, layer.name, empty)
    if layer.step is not None:
        place_step(model, layer.name, layer.step)


def runtime_names(model: nn.Module, plan: CompressionPlan) -> CompressionPlan:
    """Recorded layers under the names they have in a model that may add or drop a head.

    Args:
        model: A transformers model.
        plan: The layers by the runtime names of the model that was saved.

    Returns:
        The layers that this model has, by its own names.

    Raises:
        ValueError: If none of them is found.
    """
    modules = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "")
    found = []
    for layer in plan:
        if (here := paired_name(layer.name, prefix, modules)) is not None:
            found.append(replace(layer, name=here))
    if len(plan) and not found:
        raise ValueError(
            f"none of the {len(plan)} recorded layers, such as {plan.layers[0].name!r}, exists in "
            f"{type(model).__name__}; load the model with the class it was saved from"
        )
    return CompressionPlan(tuple(found))


def _halved_if_exact(weight: torch.Tensor) -> torch.Tensor:
    half = weight.to(torch.bfloat16)
    exact = weight.device.type != "meta" and torch.equal(half.to(weight.dtype), weight)
    return half if exact else weight
