"""Finds the layers that a name or a regular expression selects, and suggests similar names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

SHOWN = 5
"""How many names a message shows."""


class SelectionError(ValueError):
    """A name or an expression selects no layer, or nothing is left to compress."""


def is_selected(name: str, targets: Collection[str] | str) -> bool:
    """Whether a list of names or endings, or a regular expression, selects a module.

    Args:
        name: Name of the module in `model.named_modules()`.
        targets: A regular expression for the whole name, or a list. An entry of a list must equal
            the whole name, or an end of it after a dot: "up" or "mlp.up" for "layer.mlp.up".
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    endings = (ending for ending in targets if ending)  # the model itself is called ""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def is_covered(name: str, covers: Iterable[str]) -> bool:
    """Whether a module is one of the named modules, or lies inside one of them.

    Args:
        name: Name of the module in `model.named_modules()`.
        covers: Names or name endings of modules.

    Examples:
        >>> is_covered("bert.encoder.layer.0.output.dense", ["layer.0"])
        True
        >>> is_covered("bert.encoder.layer.10.output.dense", ["layer.1"])
        False
    """
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    chosen = list(covers)
    return any(is_selected(ancestor, chosen) for ancestor in above)


def check_found(option: str, wanted: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that no module has.

    Args:
        option: The option with which the user gave the names; the error shows it.
        wanted: The names or name endings that the user gave.
        known: The names of all modules.

    Raises:
        SelectionError: If a name selects nothing. The error shows similar names.
    """
    for name in wanted:
        if not name or not any(is_selected(module, [name]) for module in known):
            raise SelectionError(
                f"{option} names {name!r}, which is no module of the model; {nearest(name, known)}"
            )


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for a wrong name: similar known names, or some known names if none is similar."""
    known = [module for module in known if module]
    length = name.count(".") + 1
    endings = {".".join(module.split(".")[-length:]): module for module in known}
    close = get_close_matches(name, endings, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(dict.fromkeys(close))}?"
    return f"choose among {some(known)}"


def some(names: Collection[str]) -> str:
    """The first few names, joined by commas; the number of all names if some are left out."""
    shown = ", ".join(list(names)[:SHOWN])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > SHOWN else shown or "none"
