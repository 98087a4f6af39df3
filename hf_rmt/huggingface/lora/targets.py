"""Finds the layers of a compressed model on which PEFT can train adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_rmt.compression.refusals import check_module
from hf_rmt.compression.targets.weight_reads import handed_on
from hf_rmt.huggingface.compat import WITHIN_ADAPTER, refused_by_peft
from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.layers.compressed_layer import is_compressed
from hf_rmt.plan import Cause

UNFIT = (Cause.READ_BY_PARENT, Cause.REFERRED_TO, Cause.ROUTER, Cause.SUBCLASS)
"""If a layer was not compressed for one of these causes (see `Cause`), it gets no adapter."""


def lora_targets(model: nn.Module) -> dict[str, list[str]]:
    """The targets of LoRA in a compressed model: `LoraConfig(r=8, **lora_targets(model))`.

    The factors of a compressed layer are one parameter of shape (rank, in + out), and PEFT adapts
    this parameter. A LoRA rank above the rank of the layer adds nothing. Dense layers (which were
    not compressed) are adapted as usual, except routers (which choose experts), layers whose weight
    another module reads, subclasses of nn.Linear, and layers that PEFT refuses. A convolution gets
    no adapter if other code may read its stride, because an adapter has no stride. `lora_dropout`
    must stay 0, because PEFT has no dropout for parameters.

    `LoraConfig(target_modules=["query", "value"])` works on a compressed model as well. It adapts
    the whole matrix. So a LoRA that was trained on the dense base can be loaded in this way.

    Args:
        model: A compressed model. It may have adapters already.

    Returns:
        A dict with `target_modules` and `target_parameters`, two lists of names.

    Raises:
        TypeError: If the model is not a torch module.
        ValueError: If the model has no compressed layer with a signal (low-rank factors).
    """
    check_module(model)
    if hasattr(type(model), "get_base_model"):  # a PeftModel has other names for its parts
        model = model.get_base_model()
    spiked = {
        name.replace(WITHIN_ADAPTER, ""): part
        for name, part in model.named_modules()
        if isinstance(part, SpikedLinear)
    }
    factors = [
        f"{name}.weight"
        for name, part in spiked.items()
        if part.rank and not _is_asked_for_more(model, name)
    ]
    if not factors:
        raise ValueError(
            f"{type(model).__name__} has no compressed layer with a signal around which PEFT can "
            "put an adapter; load the model with quantization_config=RMTConfig(), or use "
            "target_modules='all-linear'"
        )
    quantizer = getattr(model, "hf_quantizer", None)
    planned = quantizer.quantization_config.layers if quantizer is not None else {}
    there = {name for name, _ in model.named_modules()}  # some may have been removed
    dense = [
        name
        for name, layer in planned.items()
        if name in there and name not in spiked and _takes_lora(model, name, layer)
    ]
    return {"target_modules": dense, "target_parameters": factors}


def _takes_lora(model: nn.Module, name: str, layer: Mapping[str, Any]) -> bool:
    """Whether a layer is dense (was not compressed) and PEFT can put an adapter around it.

    `layer` is the layer's entry in `RMTConfig.layers`. Its `cause` says why the layer was not
    compressed.
    """
    if is_compressed(model.get_submodule(name)) or layer.get("cause") in UNFIT:
        return False
    return not refused_by_peft(model, name) and not _is_asked_for_more(model, name)


def _is_asked_for_more(model: nn.Module, name: str) -> bool:
    """Whether the parent module's code may read the `stride` of this layer, a convolution.

    An adapter of PEFT has no `stride`, so such a layer gets no adapter.
    """
    parent, _, own = name.rpartition(".")
    kind: type = type(model.get_submodule(parent))
    return hasattr(model.get_submodule(name), "stride") and own in handed_on(kind)
