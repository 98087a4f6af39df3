"""Which layers of a model are compressed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from hf_rmt.nn.counterparts import has_matrix, is_convolution, is_linear, why_no_matrix
from hf_rmt.settings import METHOD_TABLE, CompressionSettings

ALL_LINEAR = "all-linear"
SHOWN_NAMES = 5


def select_layers(
    model: nn.Module, settings: CompressionSettings, *, protected: Collection[str] = ()
) -> list[str]:
    """Names of the layers with a matrix that the settings select, in the model's order.

    Args:
        model: Any module; its tensors may be on the meta device.
        settings: `target_modules` and `modules_to_not_convert` are read.
        protected: Names that stay dense, such as tied or output embeddings.

    Returns:
        Names for `model.get_submodule`. Layers that share their weight are left out.

    Raises:
        ValueError: If a target matches no such layer, or nothing is left to compress.
    """
    layers = {name: module for name, module in model.named_modules() if _suits(settings)(module)}
    if "" in layers:
        raise ValueError(
            f"a {type(model).__name__} on its own has no layer inside that could be replaced; wrap "
            'it: nn.Sequential(layer), with target_modules=["0"]'
        )
    chosen = _chosen(layers, settings, model)
    _check_targets(settings, layers, model)
    dense = _kept_dense(chosen, layers, settings, _shared_weights(model), protected)
    left = [name for name in chosen if name not in dense]
    if not left:
        why = _why_none(settings, layers, dense)
        raise ValueError(f"no layer of {type(model).__name__} is left to compress: {why}")
    if unknown := settings.layers_named() - set(left):
        raise ValueError(
            f"noise_removal names {', '.join(sorted(unknown))}, which are not among the layers to "
            f"compress; choose among {_some(left)}"
        )
    return left


def _suits(settings: CompressionSettings) -> Callable[[nn.Module], bool]:
    """Which modules the method takes."""
    return is_linear if METHOD_TABLE[settings.method].decide else has_matrix


def _kinds(settings: CompressionSettings) -> str:
    """What `_suits` lets through, in words."""
    if METHOD_TABLE[settings.method].decide:
        return f"linear layer, which is all that method={settings.method!r} takes"
    return "linear layer or convolution"


def _kept_dense(
    chosen: Collection[str],
    layers: Mapping[str, Any],
    settings: CompressionSettings,
    shared: Collection[int],
    protected: Collection[str],
) -> dict[str, str]:
    """Why layers that are chosen stay dense, by name."""
    by_name = settings.target_modules not in (None, ALL_LINEAR)
    reasons = {}
    for name in chosen:
        if _ends_with(name, settings.modules_to_not_convert or []):
            reasons[name] = "is named in modules_to_not_convert; take it out"
        elif id(layers[name].weight) in shared or (name in protected and by_name):
            reasons[name] = "is tied to another layer; choose others"
        elif name in protected:
            reasons[name] = (
                "is a head or an output embedding; name it in target_modules, if it is not tied"
            )
    return reasons


def _why_none(
    settings: CompressionSettings, layers: Collection[str], dense: Mapping[str, str]
) -> str:
    """Why nothing is left to compress, and what to do."""
    if not layers:
        return f"it has no {_kinds(settings)}; choose another model or method"
    if dense:
        groups = {why: [name for name in dense if dense[name] == why] for why in dense.values()}
        kept = ". ".join(f"{_some(names)} {why}" for why, names in groups.items())
        return f"target_modules={settings.target_modules!r} means {_some(dense)}. {kept}"
    if settings.target_modules == ALL_LINEAR:
        rule = "it has no linear layer"
    elif METHOD_TABLE[settings.method].decide:
        rule = "no linear layer comes after its blocks"
    else:
        rule = "its last layer is taken for the head, a convolution that comes first for the input"
    return f"{rule}; name layers in target_modules, among {_some(layers)}"


def _chosen(
    layers: Mapping[str, nn.Module], settings: CompressionSettings, model: nn.Module
) -> list[str]:
    targets = settings.target_modules
    if targets is None and METHOD_TABLE[settings.method].decide:
        return _after_blocks(list(layers), model)
    if targets is None:
        return _default(layers, model)
    if targets == ALL_LINEAR:
        return _linears(layers)
    return [name for name in layers if _is_target(name, targets)]


def _default(layers: Mapping[str, nn.Module], model: nn.Module) -> list[str]:
    """The rule of `CompressionSettings` for models of which no layer was named."""
    repeated = {name: part for name, part in layers.items() if _in_repeated_block(name, model)}
    if repeated:
        return _linears(repeated) or list(repeated)
    *hidden, _ = layers or [""]
    reads_the_input = bool(hidden) and is_convolution(layers[hidden[0]])
    return hidden[reads_the_input:]


def _after_blocks(names: list[str], model: nn.Module) -> list[str]:
    """The head: what comes after the repeated blocks, or all where nothing repeats."""
    blocks = [i for i, name in enumerate(names) if _in_repeated_block(name, model)]
    return names[max(blocks, default=-1) + 1 :]


def _linears(layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, module in layers.items() if not is_convolution(module)]


def _is_target(name: str, targets: list[str] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return _ends_with(name, targets)


def _in_repeated_block(name: str, model: nn.Module) -> bool:
    """Whether an ancestor is one of a list of numbered blocks inside the model."""
    parts = name.split(".")
    return any(
        part.isdigit() and isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList)
        for i, part in enumerate(parts[:-1])
    )


def _ends_with(name: str, endings: Collection[str]) -> bool:
    """Whether a name equals one of the endings or ends with it after a dot."""
    return any(name == ending or name.endswith("." + ending) for ending in endings)


def _shared_weights(model: nn.Module) -> set[int]:
    """Identities of parameters that several modules hold."""
    counts = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return {key for key, count in counts.items() if count > 1}


def _check_targets(
    settings: CompressionSettings, layers: Collection[str], model: nn.Module
) -> None:
    """Complain about a target that matches nothing, each by itself."""
    targets = settings.target_modules
    if targets is None or targets == ALL_LINEAR:
        return
    each = [targets] if isinstance(targets, str) else [[end] for end in targets]
    missing = [one for one in each if not any(_is_target(name, one) for name in layers)]
    for name, module in model.named_modules():
        reason = why_no_matrix(module)
        if reason and any(_is_target(name, one) for one in missing):
            raise ValueError(
                f"target_modules={targets!r} asks for {name!r}, which is {reason}; "
                f"leave it out, it stays dense, and choose among {_some(layers)}"
            )
    if missing:
        names = [one if isinstance(one, str) else one[0] for one in missing]
        raise ValueError(
            f"target_modules={names!r} matches no {_kinds(settings)}; a list holds names or their "
            "endings, a string is a regular expression for the whole name; "
            + (f"choose among {_some(layers)}" if layers else "the model has none")
        )


def _some(names: Collection[str]) -> str:
    """A few names, to choose from."""
    shown = ", ".join(list(names)[:SHOWN_NAMES])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > SHOWN_NAMES else shown or "none"


def compressible_layers(model: nn.Module, settings: CompressionSettings) -> list[str]:
    """Names of the linear layers and convolutions that settings select, in the model's order.

    Tied embeddings of a transformers model stay dense always, its heads unless they are asked for
    by name.

    Raises:
        ValueError: If a target matches nothing, or nothing is left.
    """
    protected = _protected(model, settings) if hasattr(model, "base_model_prefix") else set()
    return select_layers(model, settings, protected=protected)


def _protected(model: Any, settings: CompressionSettings) -> set[str]:
    tied = model.all_tied_weights_keys
    names = {key.rpartition(".")[0] for pair in tied.items() for key in pair}
    of_head = settings.target_modules is None and bool(METHOD_TABLE[settings.method].decide)
    if settings.target_modules in (None, ALL_LINEAR):
        prefix = model.base_model_prefix
        if not of_head and isinstance(getattr(model, prefix, None), nn.Module):
            inside = (prefix, "")
            names |= {name for name, _ in model.named_modules() if name.split(".")[0] not in inside}
        embeddings = model.get_output_embeddings()
        names |= {name for name, module in model.named_modules() if module is embeddings}
    return names
