"""Loading, saving and undoing compressed models: the half of the quantizer that needs no maths.

A repository that was pushed carries this file, so it must not import the mathematics.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.nn.counterparts import _empty_layer, densify, place_step
from hf_rmt.nn.spiked import SpikedLinear

ALARM = "import hf_rmt"
"""Saved as the attention implementation of config.json, which transformers without this package
does not know: it then raises an error that shows these words. The quantizer takes it out."""


class RMTLoader(HfQuantizer):
    """Rebuilds the compressed layers that a config records, on any device, before they load."""

    quantization_config: RMTConfig
    pre_quantized: bool

    def __init__(self, quantization_config: RMTConfig, **kwargs: Any) -> None:
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
        layers = runtime_names(model, self.quantization_config.layers or {})
        for name, entry in layers.items():
            if entry["compressed"]:
                model.set_submodule(name, _empty_layer(model.get_submodule(name), name, entry))
            if step := entry.get("step"):
                place_step(model, name, step)
        self.quantization_config.layers = layers

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


def runtime_names(
    model: nn.Module, layers: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Recorded layers under the names they have in a model that may add or drop a head.

    Args:
        model: A transformers model.
        layers: Entries by the runtime names of the model that was saved.

    Returns:
        The entries of the layers that this model has, by its own names.

    Raises:
        ValueError: If none of them is found.
    """
    modules = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "") + "."
    found = {}
    for name, entry in layers.items():
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in modules:
                found[candidate] = entry
                break
    if layers and not found:
        raise ValueError(
            f"none of the {len(layers)} recorded layers, such as {next(iter(layers))!r}, exists in "
            f"{type(model).__name__}; load the model with the class it was saved from"
        )
    return found


def _halved_if_exact(weight: torch.Tensor) -> torch.Tensor:
    half = weight.to(torch.bfloat16)
    exact = weight.device.type != "meta" and torch.equal(half.to(weight.dtype), weight)
    return half if exact else weight
