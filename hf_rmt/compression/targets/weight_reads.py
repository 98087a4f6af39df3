"""Finds the layers whose weight a module's code reads instead of calling the layer.

For example, `Mamba` multiplies with `self.dt_proj.weight` and never calls `self.dt_proj`. Such a
layer cannot be replaced, because the weight of a compressed layer is another tensor. This file
looks for `self.<layer>.weight` in the methods of a module's class. It also finds reads through a
variable, a loop or a function argument that stands for the layer.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn

from hf_rmt.compression.targets.reader import Read, Reader, parsed

SETTING_UP = (
    *("__init__", "_init", "init", "reset", "_reset", "tie", "_tie", "resize", "_resize"),
    *("set_", "_set", "_load", "load", "_get_adapters", "prune", "_prune", "extra_repr"),
)
"""Beginnings of the names of methods that run before or between forward passes, not in them."""


def weights_read(module: nn.Module) -> dict[str, str]:
    """Find the layers whose weight a module's code reads, as in `self.dt_proj.weight`.

    Args:
        module: Any module. Only its own methods are searched, not the methods of its children.

    Returns:
        For each such layer, the method that reads its weight. The keys are the layers' names in
        `module.named_modules()`. Empty if the source code is not available.
    """
    kind: type = type(module)
    reads = [read for read in class_reads(kind) if read.happens(module)]
    if not reads:
        return {}
    found = {}
    for name, part in module.named_modules():
        if name and isinstance(getattr(part, "weight", None), nn.Parameter):
            for read in reads:
                as_deep = read.path.endswith("**") or name.count(".") == read.path.count(".")
                if as_deep and fnmatchcase(name, read.path):
                    found[name] = read.method
    return found


@cache
def handed_on(kind: type) -> frozenset[str]:
    """Names of child modules that a class passes to functions, or whose attributes it reads.

    The class may then use any attribute of the child, such as the `stride` of a convolution.
    """
    found: set[ast.expr] = set()
    for _, method, _ in _methods(kind):
        for node in ast.walk(method):
            if isinstance(node, ast.Call):
                found |= {*node.args, *(keyword.value for keyword in node.keywords)}
            elif isinstance(node, ast.Attribute):
                found.add(node.value)
    of_self = (node for node in found if isinstance(node, ast.Attribute))
    return frozenset(node.attr for node in of_self if ast.unparse(node.value) == "self")


@cache
def class_reads(kind: type) -> tuple[Read, ...]:
    """The places that read a layer's weight, in a class's own methods and in inherited methods."""
    found: list[Read] = []
    for name, node, names in _methods(kind):
        found += Reader(kind, name, names, {node.args.args[0].arg: ("",)}).read_by(node)
    return tuple(found)


def _methods(kind: type) -> Iterator[tuple[str, ast.FunctionDef, Any]]:
    """Give name, parsed code and global variables of the methods that may run in a forward pass.

    They are those of a class and of its base classes below `nn.Module`. An overridden method
    counts only if the new one calls `super()`.
    """
    done: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else member
            if name in done or name.startswith(SETTING_UP) or not inspect.isfunction(function):
                continue
            if (node := parsed(function)) is not None and node.args.args:
                yield name, node, inspect.unwrap(function).__globals__
                if "super()" not in ast.unparse(node):  # otherwise the overridden method runs too
                    done.add(name)
