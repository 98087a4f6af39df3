"""Putting one module in the place of another, with all that the old one carries.

Whoever made the model may have frozen a layer, hooked it, or written an attribute on it. The one
function here is used wherever a layer is replaced, so that nothing of that is lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Registers of hooks that torch keeps in a module."""
BOUND_HOOK = "_hf_hook"
"""Where accelerate keeps the hook that it has put around a module's forward."""
CARRIERS: dict[str, Callable[[nn.Module, nn.Module], None]] = {}
"""How other libraries' additions to a module are moved: the attribute by which one is recognised,
and what moves it from the old module to the new one."""
OWN_ATTRIBUTES = {
    *("training", "in_features", "out_features", "nx", "nf"),
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("transposed", "output_padding", "padding_mode"),
    *("rank", "scale", "sparsity", "dense_class", "dense_requires_grad"),
    *("layout_object", "mode_changes"),
}
"""Attributes that the constructors of dense and compressed layers set themselves."""


def swap_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another one.

    The new module gets the training mode of the old one, its hooks, whether its weight and bias
    are trained, and the attributes that a user has set on it.

    Args:
        model: The model.
        name: Runtime name of the module to replace.
        new: The module that takes its place.

    Raises:
        ValueError: If the old module carries what cannot be moved: a parametrization, or a hook of
            accelerate that is bound to it.
    """
    old = model.get_submodule(name)
    if old is new:
        return
    if reason := why_not_swapped(old):
        raise ValueError(f"{name!r} cannot be replaced: {reason}")
    new.train(old.training)
    for key in HOOKS:
        _move_hooks(old, new, key)
    new._is_full_backward_hook = old._is_full_backward_hook
    _carry_gradients(old, new)
    for key in user_attributes(old):
        if not hasattr(new, key):
            setattr(new, key, getattr(old, key))
    for attribute, carry in CARRIERS.items():
        if hasattr(old, attribute):
            carry(old, new)
    model.set_submodule(name, new)


def why_not_swapped(module: nn.Module) -> str:
    """Why a module cannot be replaced, and the remedy; empty if it can."""
    if parametrize.is_parametrized(module):
        return (
            "its weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations "
            "first"
        )
    if hasattr(module, BOUND_HOOK) and BOUND_HOOK not in CARRIERS:
        return "accelerate has put a hook around it; load the model without offloading"
    return ""


def user_attributes(module: nn.Module) -> list[str]:
    """Names of the attributes that nobody but a user has set on a module."""
    return [key for key in vars(module) if key not in OWN_ATTRIBUTES and not key.startswith("_")]


def _carry_gradients(old: Any, new: Any) -> None:
    """Freeze what was frozen. A layer without a trainable weight remembers what the dense was."""
    trains = _trains(old, "weight", getattr(old, "dense_requires_grad", True))
    if isinstance(getattr(new, "weight", None), nn.Parameter):
        new.weight.requires_grad_(trains)
    else:
        new.dense_requires_grad = trains
    if isinstance(getattr(new, "bias", None), nn.Parameter):
        new.bias.requires_grad_(_trains(old, "bias", True))


def _trains(module: nn.Module, key: str, default: bool) -> bool:
    parameter = getattr(module, key, None)
    return parameter.requires_grad if isinstance(parameter, nn.Parameter) else default


def _move_hooks(old: nn.Module, new: nn.Module, key: str) -> None:
    """Move a register of hooks: the very dict, because the handles that remove hooks hold it."""
    moved, own = old.__dict__.get(key), new.__dict__.get(key)
    if moved:
        moved.update(own or {})
        new.__dict__[key] = moved
        old.__dict__[key] = OrderedDict()
