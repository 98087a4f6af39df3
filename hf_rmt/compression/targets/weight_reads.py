"""Which weights a module's code reads instead of calling the layers that hold them.

`Mamba` multiplies with `self.dt_proj.weight` and never calls `self.dt_proj`. A compressed layer has
another weight, so such a layer cannot be replaced. This file finds such layers from the code: it
looks for `self.<layer>.weight` in the methods of a module's class.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn

HARMLESS = {"dtype", "device", "is_cuda", "requires_grad", "is_meta"}
"""Attributes of a weight that can be read without using its values."""
SETTING_UP = (
    *("__init__", "_init", "init", "reset", "_reset", "tie", "_tie", "resize", "_resize"),
    *("set_", "_set", "_load", "load", "prune", "_prune", "extra_repr"),
)
"""Beginnings of the names of methods that run before or between forward passes, not in them."""
CHANGING = {"training"}
"""Attributes whose present value says nothing about later calls."""
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
}
UNKNOWN = object()


@dataclass(frozen=True)
class Read:
    """One place that reads a weight.

    Attributes:
        path: Name of the layer below the module; `*` stands for an index.
        method: Name of the method that reads it.
        guards: The conditions of the `if` statements around this place, each with the value that it
            must have.
    """

    path: str
    method: str
    guards: tuple[tuple[ast.expr, bool], ...]

    def happens(self, module: nn.Module) -> bool:
        """Whether the settings of a module allow this code to run; true if that is unknown."""
        found = ((_value(test, module), wanted) for test, wanted in self.guards)
        return all(value is UNKNOWN or bool(value) is wanted for value, wanted in found)


def weights_read(module: nn.Module) -> dict[str, str]:
    """The layers below a module whose weight the module's code reads.

    Args:
        module: Any module. Only its own methods are looked at, not those of its children.

    Returns:
        The method that reads the weight, by the name of the layer below the module. Empty if the
        source code is not available.
    """
    kind: type = type(module)
    reads = [read for read in class_reads(kind) if read.happens(module)]
    if not reads:
        return {}
    found = {}
    for name, part in module.named_modules():
        if name and isinstance(getattr(part, "weight", None), nn.Parameter):
            for read in reads:
                if name.count(".") == read.path.count(".") and fnmatchcase(name, read.path):
                    found[name] = read.method
    return found


@cache
def class_reads(kind: type) -> tuple[Read, ...]:
    """The places in the methods of a class, inherited ones included, that read a layer's weight."""
    return tuple(read for name, node in _methods(kind) for read in _Reader(name).of(node))


def _methods(kind: type) -> Iterator[tuple[str, ast.AST]]:
    """Names and parsed code of the methods that instances of a class run."""
    done: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for name, function in vars(base).items():
            if name in done or name.startswith(SETTING_UP) or not inspect.isfunction(function):
                continue
            if (node := _parsed(function)) is not None:
                yield name, node
                if "super()" not in ast.unparse(node):  # otherwise the overridden method runs too
                    done.add(name)


def _parsed(function: Callable[..., Any]) -> ast.AST | None:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        return ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


class _Reader(ast.NodeVisitor):
    """Finds the weights that one method reads."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.reads: list[Read] = []
        self.guards: list[tuple[ast.expr, bool]] = []
        self.known: dict[str, str] = {}

    def of(self, node: ast.AST) -> list[Read]:
        """The reads in a method."""
        self.visit(node)
        return self.reads

    def visit_If(self, node: ast.If) -> None:
        """Note the condition while its branches are visited."""
        self.visit(node.test)
        for branch, wanted in ((node.body, True), (node.orelse, False)):
            self.guards.append((node.test, wanted))
            for statement in branch:
                self.visit(statement)
            self.guards.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        """Record a variable that stands for a layer."""
        self.generic_visit(node)
        if isinstance(node.targets[0], ast.Name) and (path := self._path(node.value)):
            self.known[node.targets[0].id] = path

    def visit_For(self, node: ast.For) -> None:
        """Record the variable of a loop over layers."""
        if isinstance(node.target, ast.Name) and (path := self._path(node.iter)):
            self.known[node.target.id] = f"{path}.*"
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Skip `isinstance`, which reads no value."""
        if not (isinstance(node.func, ast.Name) and node.func.id == "isinstance"):
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note the weight of a layer, unless only its dtype or a similar attribute is read."""
        if node.attr in HARMLESS and isinstance(node.value, ast.Attribute):
            return
        if node.attr == "weight" and isinstance(node.ctx, ast.Load):
            if path := self._path(node.value):
                self.reads.append(Read(path, self.method, tuple(self.guards)))
            return
        self.generic_visit(node)

    def _path(self, node: ast.expr) -> str:
        """Name of the layer below `self` that an expression stands for; empty for none."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, "")
        if isinstance(node, ast.Subscript):
            path = self._path(node.value)
            return path and f"{path}.*"
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return node.attr
            path = self._path(node.value)
            return path and f"{path}.{node.attr}"
        return ""


def _value(node: ast.expr, module: object) -> Any:
    """Value of a condition if the settings of a module decide it, otherwise `UNKNOWN`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "self":
        return module
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, module)
        found = UNKNOWN if owner is UNKNOWN else getattr(owner, node.attr, UNKNOWN)
        plain = found is None or isinstance(found, bool | int | float | str)
        inner = hasattr(found, "to_dict")  # a config
        return found if (plain or inner) and node.attr not in CHANGING else UNKNOWN
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found = _value(node.operand, module)
        return UNKNOWN if found is UNKNOWN else not found
    if isinstance(node, ast.BoolOp):
        return _joined(node, module)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = _value(node.left, module), _value(node.comparators[0], module)
        compare = COMPARISONS.get(type(node.ops[0]))
        if compare is not None and left is not UNKNOWN and right is not UNKNOWN:
            return compare(left, right)
    return UNKNOWN


def _joined(node: ast.BoolOp, module: object) -> Any:
    """Value of conditions joined by `and` or `or`; one condition may be enough to decide it."""
    values = [_value(value, module) for value in node.values]
    settles = isinstance(node.op, ast.Or)
    if any(value is not UNKNOWN and bool(value) is settles for value in values):
        return settles
    return UNKNOWN if any(value is UNKNOWN for value in values) else not settles
