"""Finds layers that stay dense (not compressed) because of how the model uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hf_rmt.compression.targets.references import unregistered_references
from hf_rmt.compression.targets.weight_reads import weights_read
from hf_rmt.nn.dense_matrix import MADE_ANEW, has_matrix, is_made_anew
from hf_rmt.nn.layers.compressed_layer import is_compressed
from hf_rmt.nn.swap import why_not_swapped
from hf_rmt.plan import Cause

GATES = ("gate", "shared_expert_gate")
"""Names of layers that choose among experts (parallel parts of a model), if there are experts in
the same module."""


@dataclass(frozen=True)
class LeftDense:
    """Why a layer stays dense, which means that it is not compressed.

    Attributes:
        cause: The kind of reason, for use in code.
        reason: The reason in words.
        if_named: Whether the layer stays dense even if the user names it.
    """

    cause: Cause
    reason: str
    if_named: bool = True


Rule = Callable[[nn.Module], Mapping[str, LeftDense]]
"""A function that takes a model. For each layer that it finds, it returns why the layer stays dense
(is not compressed), by the layer's name in `model.named_modules()`."""
RULES: list[Rule] = []
"""All functions that find layers which stay dense (are not compressed). If several functions find
the same layer, the first function gives the reason."""


def left_dense(model: nn.Module) -> dict[str, LeftDense]:
    """The layers of a model that stay dense (not compressed) because of how the model uses them.

    Args:
        model: Any module; its tensors may be on the meta device.

    Returns:
        The reason for each layer, by its name in `model.named_modules()`.
    """
    found: dict[str, LeftDense] = {}
    for rule in RULES:
        found = {**rule(model), **found}
    return found


def register_rule(rule: Rule) -> Rule:
    """Add a rule to `RULES`; for use as a function decorator.

    Args:
        rule: A function that finds layers which must not be compressed; see `Rule`.
    """
    RULES.append(rule)
    return rule


@register_rule
def read_by_parent(model: nn.Module) -> dict[str, LeftDense]:
    """A `Rule`: it finds layers whose weight another module's code reads; see `weights_read`."""
    found = {}
    for prefix, parent in model.named_modules():
        for path, method in weights_read(parent).items():
            name, kind = f"{prefix}.{path}".lstrip("."), type(parent).__name__
            layer: Any = model.get_submodule(name)
            if has_matrix(layer) or is_compressed(layer):
                found[name] = LeftDense(
                    Cause.READ_BY_PARENT,
                    f"{kind}.{method} reads its weight and does not call the layer",
                )
    return found


@register_rule
def referred_to(model: nn.Module) -> dict[str, LeftDense]:
    """A `Rule`: it finds layers that a plain attribute of a module, such as a list, also holds.

    If such a layer is replaced, the attribute still holds the old layer, and the model would still
    use it.
    """
    held = unregistered_references(model)
    return {
        name: LeftDense(
            Cause.REFERRED_TO,
            f"{held[id(part)]} refers to it too, and would refer to the dense layer afterwards; "
            "keep the layer in an nn.ModuleList or nn.ModuleDict, or get it by its name in forward",
        )
        for name, part in model.named_modules()
        if id(part) in held and has_matrix(part)
    }


@register_rule
def routers(model: nn.Module) -> dict[str, LeftDense]:
    """A `Rule`: it finds, by name, layers that choose among experts (parallel parts of a model)."""
    why = LeftDense(
        Cause.ROUTER,
        "it chooses among experts, and a small error can make it choose another expert",
        if_named=False,
    )
    linears = [name for name, part in model.named_modules() if has_matrix(part)]
    return {name: why for name in linears if _chooses(name, model)}


def _chooses(name: str, model: nn.Module) -> bool:
    """Whether a layer chooses among experts (parallel parts of a model).

    Such a layer is a router, lies inside a router, or is a gate beside experts.
    """
    *above, last = name.split(".")
    if "router" in (*above, last):
        return True
    beside = model.get_submodule(".".join(above)).named_children()
    return last in GATES and any("expert" in other for other, _ in beside if other != last)


@register_rule
def made_anew(model: nn.Module) -> dict[str, LeftDense]:
    """A `Rule`: it finds layers whose weight or bias is computed anew before each call."""
    why = LeftDense(Cause.MADE_ANEW, MADE_ANEW)
    return {name: why for name, part in model.named_modules() if is_made_anew(part)}


@register_rule
def subclasses(model: nn.Module) -> dict[str, LeftDense]:
    """A `Rule`: it finds subclasses of `nn.Linear`, which may use the weight in any way."""
    return {
        name: LeftDense(
            Cause.SUBCLASS,
            f"it is a {type(part).__name__}, a subclass of nn.Linear, which may do anything with "
            "its weight",
        )
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and not has_matrix(part)
        and not is_parametrized(part)  # torch makes a subclass for each parametrized layer
    }


@register_rule
def carrying(model: nn.Module) -> dict[str, LeftDense]:
    """A `Rule`: it finds layers that cannot be replaced by new ones; see `why_not_swapped`."""
    layers = {
        name: part
        for name, part in model.named_modules()
        if has_matrix(part) or (isinstance(part, nn.Linear) and is_parametrized(part))
    }
    reasons = {name: why_not_swapped(part) for name, part in layers.items()}
    return {name: LeftDense(Cause.CARRIES, why) for name, why in reasons.items() if why}
