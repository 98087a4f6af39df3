"""Finds plain attributes of modules that refer to layers, such as a list of layers.

If a layer is replaced, only the child that torch has registered changes. A list, a
`functools.partial` or a bound method in a plain attribute still refers to the old layer. The model
would then use the old layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from hf_rmt.nn.swap import HOOKS

REGISTERED = {"_modules", "_parameters", "_buffers", *HOOKS}
"""Attributes of a module in which torch keeps its children, parameters, buffers and hooks."""


def unregistered_references(model: nn.Module) -> dict[int, str]:
    """Find modules to which plain attributes of other modules refer, such as a list of layers.

    Args:
        model: Any module.

    Returns:
        A dict. The keys are the `id()` of each such module. The values name a class and its
        attribute that refers to the module, as in `Block.steps`.
    """
    found: dict[int, str] = {}
    for part in model.modules():
        for key, value in vars(part).items():
            if key not in REGISTERED:
                for held in _modules_in(value, set()):
                    if held is not part:
                        found.setdefault(id(held), f"{type(part).__name__}.{key}")
    return found


def _modules_in(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The modules that a value such as a list holds, also in lists inside it.

    Children of these modules are left out. `seen` holds the `id()` of each value that was searched
    already.
    """
    if isinstance(value, nn.Module):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for part in _parts(value):
            yield from _modules_in(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    """The objects that a container or a function holds; nothing for any other value.

    A function holds its defaults and the variables of its closure. A partial holds its function and
    its arguments, and a bound method holds its object.
    """
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, FunctionType):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # the variable has no value yet
                continue
