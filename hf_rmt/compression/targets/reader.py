"""Parses the code of one function and finds the layers whose weights this function reads."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from hf_rmt.compression.targets.conditions import UNKNOWN, value_of
from hf_rmt.compression.targets.paths import (
    ALL_WEIGHTS,
    BELOW,
    WEIGHT,
    Known,
    Paths,
    called_name,
)

HARMLESS = {
    *("dtype", "device", "is_cuda", "is_meta", "is_floating_point"),
    *("requires_grad", "requires_grad_"),
}
"""Attributes of a weight that can be read without using its values."""


@dataclass(frozen=True)
class Read:
    """One place in a module's code that reads a weight.

    Attributes:
        path: Name of the layer inside the module. `*` stands for any name, and `**` at the end for
            all layers below.
        method: Name of the method that reads the weight.
        guards: The conditions of the `if` statements around this place, each with the value that it
            must have.
    """

    path: str
    method: str
    guards: tuple[tuple[ast.expr, bool], ...]

    def happens(self, module: nn.Module) -> bool:
        """Whether this place in the code can run with the module's settings; true if unknown."""
        found = ((value_of(test, module), wanted) for test, wanted in self.guards)
        return all(value is UNKNOWN or bool(value) is wanted for value, wanted in found)


@cache
def parsed(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The parsed code of a function; None if the source is not available."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None


class Reader(ast.NodeVisitor):
    """Finds the weights of a module's layers that one function reads.

    Args:
        kind: The class of the module, whose methods the function may call.
        method: Name of the module's method that is read. If it is a function that the method calls,
            both names, as in "helper in forward".
        names: Global variables that the function sees, by name.
        known: The layers that the arguments of the function stand for; see `Paths`.
    """

    def __init__(self, kind: type, method: str, names: Any, known: Known) -> None:
        self.kind, self.method, self.names, self.paths = kind, method, names, Paths(known)
        self.reads: list[Read] = []
        self.guards: list[tuple[ast.expr, bool]] = []
        self.local: dict[str, ast.FunctionDef | ast.Lambda] = {}
        self.looped: set[ast.Call] = set()

    def read_by(self, node: ast.FunctionDef | ast.Lambda) -> list[Read]:
        """Find all places in a function that read a weight."""
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(statement)
        return self.reads

    def visit(self, node: ast.AST) -> None:
        """Visit a node of the parsed code. Loop variables of a comprehension are recorded first.

        For example, `[f(x) for x in self.layers]` begins with `f(x)`. Before `f(x)` is searched for
        reads of weights, it must be known which layers `x` stands for.
        """
        for part in getattr(node, "generators", ()):
            self._bind_each(part.target, part.iter)
        super().visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Visit both branches of an `if`; a read in them is recorded with its condition."""
        self.visit(node.test)
        for branch, wanted in ((node.body, True), (node.orelse, False)):
            self.guards.append((node.test, wanted))
            for statement in branch:
                self.visit(statement)
            self.guards.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        """Record which variables stand for layers after an assignment such as `x = self.up`."""
        self.generic_visit(node)
        self.paths.bind(node.targets[0], node.value)
        if isinstance(node.value, ast.Lambda) and isinstance(node.targets[0], ast.Name):
            self.local[node.targets[0].id] = node.value

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Record what a variable stands for after an assignment such as `x: Any = self.up`."""
        self.generic_visit(node)
        if node.value is not None:
            self.paths.bind(node.target, node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Record an inner function, so that its code can be read when it is called."""
        self.local[node.name] = node
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """Record what the variable of an expression such as `(x := self.up)` stands for."""
        self.generic_visit(node)
        self.paths.bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        """Record which layers the variables of a loop stand for, and visit its body."""
        self._bind_each(node.target, node.iter)
        self.generic_visit(node)

    def _bind_each(self, target: ast.expr, source: ast.expr) -> None:
        """Record what the variables of a loop such as `for w in self.parameters()` stand for.

        The call after `in` does not count as a read of the weights. Only a use of `w` in the loop
        does.
        """
        self.paths.bind_each(target, source)
        self.looped |= {node for node in ast.walk(source) if isinstance(node, ast.Call)}

    def visit_Call(self, node: ast.Call) -> None:
        """Look for reads of weights in the arguments of a call, and in the called function.

        `isinstance` is skipped, because it reads no values.
        """
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            return
        self.generic_visit(node)
        self._note(self.paths.of(node))
        if isinstance(node.func, ast.Attribute) and node.func.attr in ALL_WEIGHTS:
            if node not in self.looped:
                self._note(self.paths.members(node))
            return
        self._follow(node)

    def visit_Name(self, node: ast.Name) -> None:
        """Record that the code reads a weight, if this variable stands for a weight."""
        if isinstance(node.ctx, ast.Load):
            self._note(self.paths.of(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Record that the code reads a layer's weight, unless it reads only its dtype or device."""
        source = node.value
        if node.attr in HARMLESS and (
            not isinstance(source, ast.Call) or called_name(source) == "next"
        ):
            return
        paths = self.paths.of(node) if isinstance(node.ctx, ast.Load) else ()
        self._note(paths)
        if not any(path.endswith(WEIGHT) for path in paths):
            self.generic_visit(node)

    def _note(self, paths: tuple[str, ...]) -> None:
        """Record a read of a weight for each path (see `Paths`) that ends in ".weight".

        In methods other than `forward`, a path that begins with `**` is skipped. It stands for all
        layers of the module, and a method that saves a model, for example, may read all weights.
        """
        layers = [path.removesuffix(WEIGHT) for path in paths if path.endswith(WEIGHT)]
        if "forward" not in self.method.split(" in "):
            # other methods, such as those that save a model, may go through all of its weights
            layers = [path for path in layers if not path.startswith(BELOW.lstrip("."))]
        self.reads += [Read(path, self.method, tuple(self.guards)) for path in layers]

    def _follow(self, node: ast.Call) -> None:
        """Look for reads of weights in a called function too, if it gets layers as arguments."""
        names, inner, is_method = self._called(node.func)
        if inner is None or getattr(inner, "name", "") in self.method.split(" in "):
            return  # a function may call itself
        known = self._passed(node, inner.args, is_method)
        if not any(any(paths) for paths in known.values()):
            return
        method = f"{getattr(inner, 'name', 'lambda')} in {self.method}"
        for read in Reader(self.kind, method, names, known).read_by(inner):
            guards = read.guards if known.get("self") == ("",) else ()
            self.reads.append(Read(read.path, self.method, (*self.guards, *guards)))

    def _passed(self, node: ast.Call, arguments: ast.arguments, is_method: bool) -> Known:
        """The layers that a call passes to a function, by the names of the function's arguments.

        If `f(self.up)` calls `def f(layer)`, this is {"layer": ("up",)}.
        """
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
        known: Known = {names.pop(0): ("",)} if is_method and names else {}
        for name, value in zip(names, node.args, strict=False):
            known |= self.paths.given(name, value)
        for keyword in node.keywords:
            known |= self.paths.given(keyword.arg or "", keyword.value)
        if arguments.vararg is not None:
            rest = ast.Tuple(node.args[len(names) :], ast.Load())
            known |= self.paths.given(arguments.vararg.arg, rest)
        return known

    def _called(self, node: ast.expr) -> tuple[Any, ast.FunctionDef | ast.Lambda | None, bool]:
        """Find the function that `node` names; `node` is a part of a module's parsed code.

        Returns:
            The global names that the function sees; its parsed code, None if it was not found; and
            whether it is a method of the `nn.Module` whose code is read.
        """
        found, is_method = None, False
        if isinstance(node, ast.Name):
            if node.id in self.local:
                return self.names, self.local[node.id], False
            found = self.names.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_method = self.paths.of(node.value) == ("",)
            owner = self.kind if is_method else self.names.get(node.value.id)
            found = inspect.getattr_static(owner, node.attr, None)
            is_method = is_method and not isinstance(found, staticmethod)
            found = getattr(found, "__func__", found)
        if not inspect.isfunction(found):
            return {}, None, False
        return inspect.unwrap(found).__globals__, parsed(found), is_method
