"""Which linear layers of a model are compressed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from torch import nn

from hf_rmt.settings import CompressionSettings

ALL_LINEAR = "all-linear"
SHOWN_NAMES = 5


def select_linears(
    model: nn.Module, settings: CompressionSettings, *, protected: Collection[str] = ()
) -> list[str]:
    """Names of the linear layers that the settings select, in the model's order.

    Args:
        model: Any module; its tensors may be on the meta device.
        settings: `target_modules` and `modules_to_not_convert` are read.
        protected: Names that stay dense, such as tied or output embeddings.

    Returns:
        Names for `model.get_submodule`. Linears that share their weight are left out.

    Raises:
        ValueError: If a target matches no linear layer, or nothing is left to compress.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = [name for name in linears if _is_target(name, settings.target_modules, model)]
    _check_targets(settings.target_modules, linears, chosen)
    shared = _shared_weights(model)
    skipped = settings.modules_to_not_convert or []
    left = [
        name
        for name in chosen
        if name not in protected
        and id(linears[name].weight) not in shared
        and not _ends_with(name, skipped)
    ]
    if not left:
        raise ValueError(
            f"no linear layer of {type(model).__name__} is left to compress: {len(chosen)} of "
            f"{len(linears)} match target_modules={settings.target_modules!r}, and none remains "
            f"after modules_to_not_convert={settings.modules_to_not_convert!r} and tied weights; "
            f"choose among {_some(linears)}"
        )
    return left


def _is_target(name: str, targets: list[str] | str | None, model: nn.Module) -> bool:
    if targets is None:
        return _in_repeated_block(name, model)
    if targets == ALL_LINEAR:
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return _ends_with(name, targets)


def _in_repeated_block(name: str, model: nn.Module) -> bool:
    """Whether an ancestor is a list or sequence of numbered blocks inside the model."""
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
    targets: list[str] | str | None, linears: Collection[str], chosen: Collection[str]
) -> None:
    """Complain about a target that matches nothing, each by itself."""
    if targets is None or targets == ALL_LINEAR:
        return
    if isinstance(targets, str):
        missing = [] if chosen else [targets]
    else:
        missing = [end for end in targets if not any(_ends_with(name, [end]) for name in linears)]
    if missing:
        raise ValueError(
            f"target_modules={missing!r} matches no linear layer; a list holds names or their "
            f"endings, a string is a regular expression for the whole name; choose among "
            f"{_some(linears)}"
        )


def _some(names: Collection[str]) -> str:
    """A few names, to choose from."""
    shown = ", ".join(list(names)[:SHOWN_NAMES])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > SHOWN_NAMES else shown or "none"
