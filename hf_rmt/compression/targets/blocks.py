"""Finds the layers in the repeated blocks of a model, and the layers that come after them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_rmt.compression.targets.names import is_covered
from hf_rmt.nn.dense_matrix import is_convolution


def of_blocks(layers: Mapping[str, nn.Module], model: nn.Module) -> list[str]:
    """Names of the linear layers in the repeated blocks, such as transformer blocks.

    `layers` has the layers to choose from, by name. The help of the option `TARGET_MODULES` has the
    full rule, which also covers models without such layers.
    """
    repeated = {name: part for name, part in layers.items() if in_repeated_block(name, model)}
    if repeated:
        return linears(repeated) or list(repeated)
    *hidden, _ = layers or [""]
    reads_the_input = bool(hidden) and is_convolution(layers[hidden[0]])
    return hidden[reads_the_input:]


def after_blocks(names: list[str], model: nn.Module) -> list[str]:
    """Names of the head's layers: those after the repeated blocks, or all if no block is repeated.

    `names` has the layers to choose from, in the order of the model. A transformers model may
    register its head before its body (the model without a head). So all layers outside the body
    also belong to the head, unless they lie in repeated blocks.
    """
    blocks = [place for place, name in enumerate(names) if in_repeated_block(name, model)]
    last = max(blocks, default=-1)
    body = getattr(model, "base_model_prefix", "")
    outside = bool(body) and isinstance(getattr(model, body, None), nn.Module)
    return [
        name
        for place, name in enumerate(names)
        if place not in blocks and (place > last or (outside and not is_covered(name, [body])))
    ]


def linears(layers: Mapping[str, nn.Module]) -> list[str]:
    """The names of the given layers, without the convolutions."""
    return [name for name, module in layers.items() if not is_convolution(module)]


def in_repeated_block(name: str, model: nn.Module) -> bool:
    """Whether a layer lies inside an entry of an `nn.ModuleList`, such as a transformer block."""
    parts = name.split(".")
    return any(
        part.isdigit() and isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList)
        for i, part in enumerate(parts[:-1])
    )
