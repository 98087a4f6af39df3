"""Replaces one module by another and moves everything that was attached to the old one.

The user may have frozen a layer, put a hook on it, or set an attribute on it. `swap_module` is used
wherever a layer is replaced, so that nothing gets lost: it moves such additions to the new layer.
If a layer has an addition that cannot be moved, the layer is not replaced.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from hf_rmt.nn.dense_matrix import MADE_ANEW, has_matrix, is_conv1d, is_made_anew
from hf_rmt.nn.layers.compressed_layer import CompressedLayer, is_compressed

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
"""Attributes of a module in which torch keeps hooks."""
GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Attributes of a tensor in which torch keeps hooks."""
BOUND_HOOK = "_hf_hook"
"""The attribute in which accelerate keeps the hook that it has put around a module's forward."""
WRAPPED = "_old_forward"
"""The attribute in which accelerate keeps the module's own forward while a hook is around it."""
CARRIERS: dict[str, Callable[[nn.Module, nn.Module], None]] = {}
"""Functions that move what other libraries add to a module. A key is the attribute that shows such
an addition; the function moves the addition from the old module to the new one."""
LIBRARIES = ("torch", "transformers", "accelerate")
"""Packages whose hooks on the gradient of a weight do not prevent the replacement of the layer.
Such a hook belongs to one training run, which ends before the replacement or begins after it."""
INITIALISED = "_is_hf_initialized"
"""The attribute by which transformers marks initialised modules and tensors; the mark is not
moved."""
OWN_ATTRIBUTES = {
    *vars(nn.Module()),
    *("weight", "bias", "in_features", "out_features", "nx", "nf"),
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("transposed", "output_padding", "padding_mode", "_reversed_padding_repeated_twice"),
    *(BOUND_HOOK, WRAPPED, INITIALISED),
}
"""Names of attributes that no user has set: constructors of torch and transformers set them on
layers that are not compressed, or libraries set them on any module."""
OF_COMPRESSED = {"rank", "noise", "scale", "step", "unpacked", "_layout", "_source"}
"""Further names of attributes that no user has set, because constructors of compressed layers set
them."""


def swap_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another one.

    The new module takes over from the old one: the training mode, the hooks, `requires_grad` of the
    weight and the bias, and the attributes that a user has set on the module, weight or bias.

    Args:
        model: The model.
        name: Name of the module to replace, as in `model.named_modules()`.
        new: The module that takes its place.

    Raises:
        ValueError: If the old module has something that cannot be moved; see `why_not_swapped`.
    """
    old = model.get_submodule(name)
    if old is new:
        return
    if reason := why_not_swapped(old) or _why_taken(old, new):
        raise cannot_swap(name, reason)
    new.train(old.training)
    for key in HOOKS:
        _move_hooks(old.__dict__, new.__dict__, key)
    new._is_full_backward_hook = old._is_full_backward_hook
    _carry_gradients(old, new)
    _carry_weight_attributes(old, new)
    _carry_bias(old, new)
    for key in user_attributes(old):
        if _is_layer(old) or not hasattr(new, key):
            setattr(new, key, getattr(old, key))
    for attribute, carry in CARRIERS.items():
        if hasattr(old, attribute):
            carry(old, new)
    model.set_submodule(name, new)


def cannot_swap(name: str, reason: str) -> ValueError:
    """The error which says that the module of this name cannot be replaced, and why."""
    return ValueError(f"{name!r} cannot be replaced: {reason}")


def why_not_swapped(module: nn.Module) -> str:
    """Why a module cannot be replaced, and the remedy; empty if the module can be replaced.

    A layer cannot be replaced if its weight or bias is computed from other tensors, if one of its
    methods was replaced, if it has tensors or children that its class does not give it, or if there
    is a hook on the gradient of its weight. A layer that accelerate has hooked can be replaced only
    after `hf_rmt.huggingface` is imported.
    """
    if parametrize.is_parametrized(module):
        return (
            "its weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations "
            "first"
        )
    if is_made_anew(module):
        return MADE_ANEW
    if hasattr(module, BOUND_HOOK) and BOUND_HOOK not in CARRIERS:
        return "accelerate has put a hook around it; load the model without offloading"
    if key := next(_patched(module), None):
        return (
            f"its method {key!r} was replaced on this object, and the layer in its place would not "
            f"do the same; delete the attribute {key!r}, or use a hook or a module around the layer"
        )
    return _why_own(module) if _is_layer(module) else ""


def user_attributes(module: nn.Module) -> list[str]:
    """Names of a module's attributes that were set by a user, not by a class or a library."""
    given, is_layer, kind = _given(module), _is_layer(module), type(module)
    return [
        key
        for key in vars(module)
        if key not in given and not hasattr(kind, key) and (is_layer or not key.startswith("_"))
    ]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer, a convolution or a compressed layer.

    For such a layer it is known which attributes its class sets. A user has set the others.
    """
    return isinstance(module, CompressedLayer | nn.Linear | nn.Conv2d) or is_conv1d(module)


def _given(module: Any) -> set[str]:
    """Names of what a module has because of its class; all else was added by the user."""
    given = set(OWN_ATTRIBUTES)
    for kind in type(module).__mro__:
        given |= set(inspect.get_annotations(kind))
    if is_compressed(module):
        with torch.device("meta"):
            dense = module.empty_dense()
        like = type(module).empty_like(dense, getattr(module, "rank", 0), "drop", device="meta")
        given |= {*vars(like), *_held(like)}
    return given


def _held(module: nn.Module) -> Iterator[str]:
    """Names of the parameters, buffers and child modules that are registered in a module itself."""
    yield from (*module._parameters, *module._buffers, *module._modules)


def _patched(module: nn.Module) -> Iterator[str]:
    """Names of the methods that were replaced on this object, but not in its class."""
    for key, value in vars(module).items():
        method = getattr(type(module), key, None)
        wraps = key == "forward" and WRAPPED in vars(module)
        if wraps and getattr(getattr(value, "func", None), "__module__", "") == "accelerate.hooks":
            value = vars(module)[WRAPPED]
        # after accelerate has removed its hook, the class's own method is still set on the object
        if inspect.isfunction(method) and getattr(value, "__func__", None) is not method:
            yield key


def _why_own(layer: Any) -> str:
    """Why a user's addition to a layer cannot be moved to a new layer; empty if all can be moved.

    An addition is a tensor, a child, an attribute, or a hook on the gradient of the weight.
    """
    given = _given(layer)
    more = [key for key in _held(layer) if key not in given and not hasattr(type(layer), key)]
    if more:
        return (
            f"{more[0]!r} was registered on it, a tensor or module that its class does not have; "
            "delete it first, or register it on the module around the layer"
        )
    taken = OF_COMPRESSED.intersection(user_attributes(layer)) if has_matrix(layer) else ()
    if taken:
        return _taken(min(taken))
    known = has_matrix(layer) or is_compressed(layer)
    if known and isinstance(layer.weight, nn.Parameter) and _is_hooked(layer.weight):
        return (
            "a hook waits for the gradient of its weight, and the new weight has another shape; "
            "remove the hook first, and register one on the new weight if you need it"
        )
    return ""


def _taken(key: str) -> str:
    return f"its attribute {key!r} has a name that compressed layers use; rename the attribute"


def _why_taken(old: nn.Module, new: nn.Module) -> str:
    """Why a user's attribute cannot be moved to the new module; empty if all can be moved.

    It cannot be moved if the new module uses an attribute of the same name.
    """
    known = [key for key in user_attributes(old) if hasattr(new, key)]
    taken = set(known) - set(user_attributes(new)) if known and _is_layer(old) else ()
    return _taken(min(taken)) if taken else ""


def _is_hooked(parameter: Any) -> bool:
    """Whether a user, not one of `LIBRARIES`, has put a hook on the gradient of a parameter."""
    hooks = [hook for key in GRADIENT_HOOKS for hook in (getattr(parameter, key) or {}).values()]
    homes = (str(getattr(hook, "__module__", "")).partition(".")[0] for hook in hooks)
    return any(home not in LIBRARIES for home in homes)


def _carry_gradients(old: Any, new: Any) -> None:
    """Copy `requires_grad` of the weight and the bias from the old layer to the new one.

    If the new layer's weight is no parameter, `new.dense_requires_grad` stores the value for it.
    """
    trains = _trains(old, "weight", getattr(old, "dense_requires_grad", True))
    if isinstance(getattr(new, "weight", None), nn.Parameter):
        _set_trains(new.weight, trains)
    else:
        new.dense_requires_grad = trains
    if isinstance(getattr(new, "bias", None), nn.Parameter):
        _set_trains(new.bias, _trains(old, "bias", True))


def _trains(module: nn.Module, key: str, default: bool) -> bool:
    parameter = getattr(module, key, None)
    return parameter.requires_grad if isinstance(parameter, nn.Parameter) else default


def _set_trains(parameter: nn.Parameter, trains: bool) -> None:
    # torch refuses to set it for a tensor of inference mode, even to the value that it has
    if parameter.requires_grad is not trains:
        parameter.requires_grad_(trains)


def _carry_weight_attributes(old: Any, new: Any) -> None:
    """Copy the attributes that were set on the old layer's weight to the new layer's weight.

    If the new weight is no parameter, `new.dense_attributes` stores them.
    """
    weight = getattr(old, "weight", None)
    trained = isinstance(weight, nn.Parameter)
    known = _attributes(weight) if trained else getattr(old, "dense_attributes", {})
    if isinstance(getattr(new, "weight", None), nn.Parameter):
        new.weight.__dict__.update(known)
    elif known:
        new.dense_attributes = known


def _carry_bias(old: Any, new: Any) -> None:
    """Give the new bias the attributes of the old bias and the hooks on its gradient.

    A new compressed layer also notes in `took_bias` whether the dense layer had a bias.
    """
    before, after = getattr(old, "bias", None), getattr(new, "bias", None)
    if isinstance(new, CompressedLayer):
        new.took_bias = getattr(old, "took_bias", before is not None)
    both = isinstance(before, nn.Parameter) and isinstance(after, nn.Parameter)
    if not both or before is after:
        return
    after.__dict__.update(_attributes(before))
    for key in GRADIENT_HOOKS:
        if hooks := getattr(before, key):
            setattr(after, key, hooks)  # the same dict object, as for modules


def _attributes(parameter: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(parameter).items() if key != INITIALISED}


def _move_hooks(old: dict[str, Any], new: dict[str, Any], key: str) -> None:
    """Move the dict of hooks under `key` from the attributes of one module to those of another.

    The dict is not copied: the handle with which a user removes a hook refers to this dict.
    """
    moved, own = old.get(key), new.get(key)
    if moved:
        moved.update(own or {})
        new[key] = moved
        old[key] = OrderedDict()
