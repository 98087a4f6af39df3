"""Which weights a module's code reads instead of calling the layers that hold them.

`Mamba` multiplies with `self.dt_proj.weight` and never calls `self.dt_proj`. A compressed layer has
another weight, so such a layer cannot be replaced. This file finds such layers from the code: it
looks for `self.<layer>.weight` in the methods of a module's class, also where a variable, a loop or
a function's argument stands for the layer.
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
    found: list[Read] = []
    for name, node, names in _methods(kind):
        found += _Reader(name, names, {node.args.args[0].arg: ("",)}).of(node)
    return tuple(found)


def _methods(kind: type) -> Iterator[tuple[str, ast.FunctionDef, Any]]:
    """Names, parsed code and global names of the methods that instances of a class run."""
    done: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else member
            if name in done or name.startswith(SETTING_UP) or not inspect.isfunction(function):
                continue
            if (node := _parsed(function)) is not None:
                yield name, node, inspect.unwrap(function).__globals__
                if "super()" not in ast.unparse(node):  # otherwise the overridden method runs too
                    done.add(name)


def _parsed(function: Callable[..., Any]) -> ast.FunctionDef | None:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return node if isinstance(node, ast.FunctionDef) and node.args.args else None


class _Reader(ast.NodeVisitor):
    """Finds the weights that one function reads.

    Args:
        method: Name of the method of the module.
        names: Global names of the function.
        known: Names of layers below the module, by the variables that stand for them. A name is a
            pattern; the module itself is "".
    """

    def __init__(self, method: str, names: Any, known: dict[str, tuple[str, ...]]) -> None:
        self.method, self.names, self.known = method, names, dict(known)
        self.reads: list[Read] = []
        self.guards: list[tuple[ast.expr, bool]] = []

    def of(self, node: ast.FunctionDef) -> list[Read]:
        """The reads in a function."""
        for statement in node.body:
            self.visit(statement)
        return self.reads

    def visit(self, node: ast.AST) -> None:
        """Record the variables of a comprehension before its result is visited."""
        for part in getattr(node, "generators", ()):
            self._bind_each(part.target, part.iter)
        super().visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Note the condition while its branches are visited."""
        self.visit(node.test)
        for branch, wanted in ((node.body, True), (node.orelse, False)):
            self.guards.append((node.test, wanted))
            for statement in branch:
                self.visit(statement)
            self.guards.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        """Record the variables that stand for layers."""
        self.generic_visit(node)
        self._bind(node.targets[0], node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """Record a variable that is assigned within an expression."""
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        """Record the variables of a loop over layers."""
        self._bind_each(node.target, node.iter)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Skip `isinstance`, which reads no value, and follow a layer into a function."""
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            return
        self.generic_visit(node)
        function = self.names.get(node.func.id) if isinstance(node.func, ast.Name) else None
        given = [tuple(filter(None, self._paths(argument))) for argument in node.args]
        if any(given) and inspect.isfunction(function) and (inner := _parsed(function)) is not None:
            names = [argument.arg for argument in inner.args.args]
            known = dict(zip(names, given, strict=False))
            if inner.name not in self.method.split(" in "):  # a function may call itself
                reader = _Reader(f"{inner.name} in {self.method}", function.__globals__, known)
                guards = tuple(self.guards)
                self.reads += [Read(read.path, self.method, guards) for read in reader.of(inner)]

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note the weight of a layer, unless only its dtype or a similar attribute is read."""
        if node.attr in HARMLESS and isinstance(node.value, ast.Attribute):
            return
        if node.attr == "weight" and isinstance(node.ctx, ast.Load):
            guards = tuple(self.guards)
            paths = (path for path in self._paths(node.value) if path)
            self.reads += [Read(path, self.method, guards) for path in paths]
            return
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        """Record what the variables of an assignment stand for."""
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=False):
                self._bind(one, part)
        elif isinstance(target, ast.Name) and (paths := self._paths(value)):
            self.known[target.id] = paths

    def _bind_each(self, target: ast.expr, source: ast.expr) -> None:
        """Record what the variables of a loop stand for."""
        paths = self._members(source)
        variables = target.elts if isinstance(target, ast.Tuple) else [target]
        for variable in variables:
            if paths and isinstance(variable, ast.Name):
                self.known[variable.id] = paths

    def _members(self, node: ast.expr) -> tuple[str, ...]:
        """The layers that a loop over an expression gives."""
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(path for part in node.elts for path in self._paths(part))
        if isinstance(node, ast.Call):  # enumerate(layers), zip(layers, x), layers.values()
            inside = [
                *node.args,
                *([node.func.value] if isinstance(node.func, ast.Attribute) else []),
            ]
            return tuple(path for part in inside for path in self._members(part))
        return tuple(f"{path}.*" for path in self._paths(node) if path)

    def _paths(self, node: ast.expr) -> tuple[str, ...]:
        """Names of the layers that an expression stands for; empty for none."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, ())
        if isinstance(node, ast.NamedExpr):
            return self._paths(node.value)
        if isinstance(node, ast.IfExp):
            return (*self._paths(node.body), *self._paths(node.orelse))
        if isinstance(node, ast.Subscript):
            return tuple(f"{path}.*" for path in self._paths(node.value) if path)
        if isinstance(node, ast.Attribute):
            return tuple(f"{path}.{node.attr}".lstrip(".") for path in self._paths(node.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._of_getattr(node) if node.func.id == "getattr" else ()
        return ()

    def _of_getattr(self, node: ast.Call) -> tuple[str, ...]:
        """The layers that `getattr(self, name)` may give; any of them if the name is unknown."""
        if len(node.args) < 2:
            return ()
        told = getattr(node.args[1], "value", None)
        name = told if isinstance(told, str) else "*"
        return tuple(f"{path}.{name}".lstrip(".") for path in self._paths(node.args[0]))


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
