"""Checks that refuse models and settings before any layer of a model is changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_rmt.nn.counterparts import compressed_layers, matrix_shape, not_in_memory
from hf_rmt.nn.swap import cannot_swap, why_not_swapped
from hf_rmt.settings import CompressionSettings

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights that can be decomposed into singular values and vectors."""
REMEDY = "name the layer in modules_to_not_convert, or make its weight a dense float32 tensor"


def check_module(model: object) -> None:
    """Refuse anything that is not a torch module with weights.

    Raises:
        TypeError: If the argument is not a module.
        ValueError: If a part of the module has no weights yet.
    """
    if not isinstance(model, nn.Module):
        plain = isinstance(model, str | int | None)  # a dict of weights would fill the screen
        shown = repr(model) if plain else type(model).__name__
        raise TypeError(f"hf_rmt needs a loaded model, got {shown}; load it first")
    for name, part in model.named_modules():
        if any(isinstance(entry, UninitializedParameter) for entry in part.parameters(False)):
            raise ValueError(
                f"{name!r} is a {type(part).__name__} that has no weight before its first batch; "
                "run the model on one batch first"
            )


def check_no_adapter(model: nn.Module) -> None:
    """Refuse a model with adapters around its layers, such as those of PEFT.

    Raises:
        ValueError: If the model has an adapter. The error says which object to pass.
    """
    for name, part in model.named_modules():
        if hasattr(part, "base_layer") and hasattr(part, "adapter_layer_names"):
            raise ValueError(
                f"{name!r} has an adapter around it ({type(part).__name__}). Compress the base "
                "model first and add the adapter to it afterwards; or merge the adapter, and pass "
                "what model.merge_and_unload() returns"
            )


def check_settings(config: object) -> None:
    """Refuse a config that is neither `CompressionSettings` (such as an `RMTConfig`) nor None.

    Raises:
        TypeError: If the config is anything else.
    """
    if not isinstance(config, CompressionSettings | None):
        raise TypeError(f"config must be an RMTConfig, got {config!r}")


def check_has_compressed(model: nn.Module) -> None:
    """Refuse a model without compressed layers: it is dense already.

    Raises:
        ValueError: If the model has no compressed layer.
    """
    if not compressed_layers(model):
        raise ValueError(
            f"{type(model).__name__} has no layer compressed by hf_rmt, so it is dense already; "
            "save it with save_pretrained"
        )


def check_layers(model: nn.Module, names: list[str]) -> None:
    """Refuse weights that cannot be decomposed and layers that cannot be replaced.

    To decompose a weight is to compute its singular values and vectors.

    Args:
        model: The model.
        names: Names of the layers to check, as in `model.named_modules()`.

    Raises:
        ValueError: If a layer fails the check. The error names the layer, its problem and the
            remedy.
    """
    check_weights(model, names)
    for name in names:
        layer = model.get_submodule(name)
        if reason := why_not_swapped(layer):
            raise cannot_swap(name, reason)
        if 0 in matrix_shape(layer):
            raise ValueError(f"the weight of {name!r} is empty; {REMEDY}")


def check_weights(model: nn.Module, names: list[str]) -> None:
    """Refuse weights that cannot be decomposed into singular values and vectors.

    Args:
        model: The model.
        names: Names of the layers to check, as in `model.named_modules()`.

    Raises:
        ValueError: If a weight fails the check. The error names the layer, its problem and the
            remedy.
    """
    for name in names:
        layer: Any = model.get_submodule(name)
        weight = layer.weight
        if is_traceable_wrapper_subclass(weight):
            raise ValueError(
                f"the weight of {name!r} is a {type(weight).__name__}, which wraps other tensors, "
                "and only plain tensors can be decomposed here; compress the model before it is "
                "sharded (FSDP, tensor parallel) or quantised"
            )
        if weight.layout != torch.strided or weight.is_quantized:
            raise ValueError(
                f"the weight of {name!r} is {_stored_as(weight)}, and only dense floating-point "
                f"tensors can be decomposed here; {REMEDY}"
            )
        if weight.dtype not in DTYPES:
            raise ValueError(
                f"the weight of {name!r} has dtype {weight.dtype}, and only "
                f"{', '.join(str(dtype) for dtype in DTYPES)} can be decomposed; {REMEDY}"
            )
        if weight.device.type == "meta":
            raise not_in_memory(name)


def _stored_as(weight: Any) -> str:
    return f"quantized to {weight.dtype}" if weight.is_quantized else f"stored as {weight.layout}"


def check_not_of_inference(model: nn.Module, *, gradients: bool) -> None:
    """Refuse to calibrate a model whose tensors were made in `torch.inference_mode`.

    Such tensors cannot be frozen or differentiated.

    Args:
        model: The model.
        gradients: Whether calibration needs gradients, so that buffers are checked too.

    Raises:
        ValueError: If the model has such a tensor. The error names it.
    """
    named = [*model.named_parameters(), *(model.named_buffers() if gradients else ())]
    if name := next((name for name, tensor in named if tensor.is_inference()), None):
        raise ValueError(
            f"{name!r} was made in inference mode, and calibration needs normal tensors; make or "
            "load the model outside of torch.inference_mode()"
        )
