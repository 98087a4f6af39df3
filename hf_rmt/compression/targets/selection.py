"""Chooses the layers of a model that are compressed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from hf_rmt.compression.directions import layers_named
from hf_rmt.compression.targets.blocks import in_repeated_block, linears
from hf_rmt.compression.targets.left_dense import LeftDense, left_dense
from hf_rmt.compression.targets.names import (
    SelectionError,
    check_found,
    is_covered,
    is_selected,
    nearest,
    some,
)
from hf_rmt.nn.dense_matrix import why_no_matrix
from hf_rmt.plan import Cause
from hf_rmt.settings import CompressionSettings, method_of

ALL_LINEAR = "all-linear"
TIED = "is tied to another layer"


def compressible_layers(model: nn.Module, settings: CompressionSettings) -> list[str]:
    """Names of the layers that settings select, in the model's order.

    In a transformers model, tied embeddings (they share a weight) always stay dense (not
    compressed). Heads, the layers after the repeated blocks, stay dense unless the user names them
    or the method compresses heads by default. The same holds for a transformers model in `model`.

    Args:
        model: Any module; its tensors may be on the meta device.
        settings: The method and its options.

    Returns:
        Names for `model.get_submodule`.

    Raises:
        SelectionError: If a target matches no layer, or no layer is left to compress.
    """
    return select_layers(model, settings, protected=_protected_everywhere(model, settings))


def transformers_models(model: nn.Module) -> dict[str, Any]:
    """A dict from name to outermost transformers model in `model`; `""` names `model` itself.

    Models are recognised by their attributes, because this package works without transformers.
    """
    found: dict[str, Any] = {}
    for name, part in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        kind = type(part)  # a wrapper may have the attributes of the model inside it
        if not inside and hasattr(kind, "base_model_prefix") and hasattr(kind, "save_pretrained"):
            found[name] = part
    return found


def select_layers(
    model: nn.Module, settings: CompressionSettings, *, protected: Collection[str] = ()
) -> list[str]:
    """Names of the layers with a weight matrix that the settings select, in the model's order.

    Args:
        model: Any module; its tensors may be on the meta device.
        settings: Only `method`, `target_modules`, `modules_to_not_convert` and the layers that
            `noise_removal` names are used.
        protected: Names of layers not to compress, such as tied or output embeddings.

    Returns:
        Names for `model.get_submodule`. Layers that share their weight are left out.

    Raises:
        SelectionError: If a name or an expression selects no layer, or nothing is left to compress.
    """
    method = method_of(settings)
    modules = dict(model.named_modules())
    layers = {name: module for name, module in modules.items() if method.accepts(module)}
    if "" in layers:
        raise SelectionError(
            f"a {type(model).__name__} on its own has no layer inside that could be replaced; wrap "
            'it: nn.Sequential(layer), with target_modules=["0"]'
        )
    check_found("modules_to_not_convert", settings.modules_to_not_convert or [], modules)
    chosen = _chosen(layers, settings, model)
    _check_targets(settings, layers, model)
    dense = _kept_dense(chosen, layers, settings, _shared_weights(model), protected)
    held = _held(left_dense(model), settings)
    dense |= {name: f"stays dense: {held[name].reason}" for name in chosen if name in held}
    left = [name for name in chosen if name not in dense]
    if not left:
        why = _why_none(settings, layers, dense, held)
        raise SelectionError(f"no layer of {type(model).__name__} is left to compress: {why}")
    for name in sorted(layers_named(settings) - set(left)):
        raise SelectionError(
            f"noise_removal names {name!r}, which is not among the layers to compress; "
            f"{nearest(name, left)}"
        )
    return left


def kept_layers(model: nn.Module, settings: CompressionSettings) -> dict[str, LeftDense]:
    """Find selected layers that are not compressed, because of how the model uses them.

    Args:
        model: Any module; its tensors may be on the meta device.
        settings: The method and its options.

    Returns:
        A dict from name to reason. Layers in `modules_to_not_convert` are left out.
    """
    held = _held(left_dense(model), settings)
    excepted = settings.modules_to_not_convert or []
    accepts = method_of(settings).accepts
    layers = {name: part for name, part in model.named_modules() if accepts(part) or name in held}
    heads = _protected_everywhere(model, settings)
    tied = _tied(model, layers, heads, settings)
    return {
        name: tied[name] if name in tied else held[name]
        for name in _chosen(layers, settings, model)
        if not is_covered(name, excepted) and (name in tied or (name in held and name not in heads))
    }


def _tied(
    model: nn.Module,
    layers: Mapping[str, Any],
    heads: Collection[str],
    settings: CompressionSettings,
) -> dict[str, LeftDense]:
    """A dict from name to reason, for layers not compressed because they share a weight."""
    shared = _shared_weights(model)
    named = settings.target_modules not in (None, ALL_LINEAR)
    why = LeftDense(Cause.TIED, f"its weight {TIED}")
    return {
        name: why
        for name, layer in layers.items()
        if (id(layer.weight) in shared and (named or name not in heads))
        or (named and name in heads)
    }


def _held(found: Mapping[str, LeftDense], settings: CompressionSettings) -> dict[str, LeftDense]:
    """The reasons in `found`; if settings name layers, only those with `LeftDense.if_named`."""
    by_name = settings.target_modules not in (None, ALL_LINEAR)
    return {name: why for name, why in found.items() if why.if_named or not by_name}


def _chosen(
    layers: Mapping[str, nn.Module], settings: CompressionSettings, model: nn.Module
) -> list[str]:
    targets = settings.target_modules
    if targets is None:
        return method_of(settings).default_targets(layers, model)
    if targets == ALL_LINEAR:
        return linears(layers)
    return [name for name in layers if is_selected(name, targets)]


def _kept_dense(
    chosen: Collection[str],
    layers: Mapping[str, Any],
    settings: CompressionSettings,
    shared: Collection[int],
    protected: Collection[str],
) -> dict[str, str]:
    """A dict from name to reason, for each layer in `chosen` that must not be compressed."""
    by_name = settings.target_modules not in (None, ALL_LINEAR)
    reasons = {}
    for name in chosen:
        if is_covered(name, settings.modules_to_not_convert or []):
            reasons[name] = "is named in modules_to_not_convert; take it out"
        elif id(layers[name].weight) in shared or (name in protected and by_name):
            reasons[name] = f"{TIED}; choose other layers"
        elif name in protected:
            reasons[name] = (
                "is a head or an output embedding; name it in target_modules, if it is not tied"
            )
    return reasons


def _why_none(
    settings: CompressionSettings,
    layers: Collection[str],
    dense: Mapping[str, str],
    held: Mapping[str, LeftDense],
) -> str:
    """Why no layer is left to compress, and what to do about it."""
    causes = (Cause.SUBCLASS, Cause.MADE_ANEW, Cause.CARRIES)
    odd = {name: why for name, why in held.items() if why.cause in causes}
    if odd and settings.target_modules in (None, ALL_LINEAR):
        others = {name: why for name, why in dense.items() if name not in odd}
        subclass = any(why.cause is Cause.SUBCLASS for why in odd.values())
        remedy = "; choose another model" if subclass else ""
        why_odd = {name: f"stay dense: {why.reason}" for name, why in odd.items()}
        return _grouped(why_odd | others) + remedy
    if not layers:
        return f"it has no {method_of(settings).accepted}; choose another model or method"
    if dense:
        return f"target_modules={settings.target_modules!r} picks {some(dense)}. {_grouped(dense)}"
    if settings.target_modules == ALL_LINEAR:
        rule = "it has no linear layer"
    else:
        rule = method_of(settings).why_no_default()
    return f"{rule}; name layers in target_modules, among {some(layers)}"


def _grouped(reasons: Mapping[str, str]) -> str:
    """The reasons as one text: {"a": "is tied", "b": "is tied"} becomes "a, b is tied"."""
    groups = {why: [name for name in reasons if reasons[name] == why] for why in reasons.values()}
    return ". ".join(f"{some(names)} {why}" for why, names in groups.items())


def _shared_weights(model: nn.Module) -> set[int]:
    """The `id()` of each parameter that several modules share, or whose module is shared."""
    counts = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return {key for key, count in counts.items() if count > 1}


def _check_targets(
    settings: CompressionSettings, layers: Collection[str], model: nn.Module
) -> None:
    """Raise an error for the first entry of `target_modules` that matches no layer."""
    targets = settings.target_modules
    if targets is None or targets == ALL_LINEAR:
        return
    each: list[Any] = [targets] if isinstance(targets, str) else [[end] for end in targets]
    for one in each:
        if any(is_selected(name, one) for name in layers):
            continue
        if reason := next(_why_refused(one, model), None):
            raise SelectionError(
                f"target_modules={targets!r} asks for {reason}; leave it out, because it stays "
                f"dense, and choose among {some(layers)}"
            )
        wanted = one if isinstance(one, str) else one[0]
        if one is targets and any(is_selected(name, [wanted]) for name in layers):
            raise SelectionError(
                f"target_modules={wanted!r} is a regular expression for the whole name, and no "
                f"layer matches it; pass a list for names or their endings: [{wanted!r}]"
            )
        raise SelectionError(
            f"target_modules={wanted!r} matches no {method_of(settings).accepted}; a list holds "
            "names or their endings, a string is a regular expression for the whole name; "
            + (nearest(wanted, layers) if layers else "the model has none")
        )


def _why_refused(target: list[str] | str, model: nn.Module) -> Iterator[str]:
    """For each selected module that cannot be compressed, yield a text: name and reason."""
    held = left_dense(model)
    for name, module in model.named_modules():
        if not name or not is_selected(name, target):
            continue
        if name in held:
            yield f"{name!r}, but {held[name].reason}"
        elif reason := why_no_matrix(module):
            yield f"{name!r}, which is {reason}"


def _protected_everywhere(model: nn.Module, settings: CompressionSettings) -> set[str]:
    """Names of the layers that `_protected` finds in all transformers models inside `model`."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in transformers_models(model).items()
        for name in _protected(part, settings)
    }


def _protected(model: Any, settings: CompressionSettings) -> set[str]:
    """Names of a transformers model's layers not to compress: they share a weight, or are heads."""
    tied = model.all_tied_weights_keys
    names = {key.rpartition(".")[0] for pair in tied.items() for key in pair}
    of_head = settings.target_modules is None and method_of(settings).takes_heads
    if settings.target_modules in (None, ALL_LINEAR):
        prefix = model.base_model_prefix
        if not of_head and isinstance(getattr(model, prefix, None), nn.Module):
            names |= set(_heads(model, prefix))
        embeddings = model.get_output_embeddings()
        names |= {name for name, module in model.named_modules() if module is embeddings}
    return names


def _heads(model: nn.Module, prefix: str) -> Iterator[str]:
    """Names of modules outside the body (the module `prefix`) and outside repeated blocks."""
    for name, _ in model.named_modules():
        outside = name.split(".")[0] not in (prefix, "")
        if outside and not in_repeated_block(name, model):
            yield name
