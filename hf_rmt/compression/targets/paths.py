"""Finds which layers the variables in a module's code stand for: after `x = self.up`, x is `up`.

A path is the dotted name of a layer below the module, or of its weight. In a path, `*` stands for
any name and a final `**` for all layers below. The path of the module itself is empty.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

ALL_WEIGHTS = {"parameters", "named_parameters", "state_dict"}
"""Methods of a module that give the weights of all layers below it."""
BY_NAME = {"getattr", "get_submodule", "get_parameter"}
"""Functions and methods that give a part of a module by its name."""
NUMBERED = {"enumerate", "items", "named_parameters", "named_children", "named_modules"}
"""Functions and methods that give pairs: a number or a name, and then a part of a module."""
WEIGHT = ".weight"
BELOW = ".**"
"""A path (dotted name of a module) with this end stands for all layers below this module."""
LIST = "[]"
"""End of a key in `Known`: if a variable x in a module's code is a list, the key "x[]" has the
dotted names of the layers in it."""
Known = dict[str, tuple[str, ...]]
"""For each variable in a module's code, the dotted names of the layers that it stands for. After
`x = self.up` it is {"x": ("up",)}."""


class Paths:
    """Knows which layers the variables in code stand for: after `x = self.up`, x is `up`.

    A path is the dotted name of a layer below the module, or of its weight. In a path, `*` stands
    for any name and a final `**` for all layers below.

    Args:
        known: Paths by the name of the variable, for the variables that are known at the start,
            such as arguments of a function.
    """

    def __init__(self, known: Mapping[str, tuple[str, ...]]) -> None:
        self.known: Known = dict(known)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        """Record which layer the variable of an assignment such as `x = self.up` stands for."""
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=False):
                self.bind(one, part)
        elif isinstance(target, ast.Name):
            self.known |= self.given(target.id, value)

    def given(self, name: str, value: ast.expr) -> Known:
        """The names that stand for layers after the assignment `name = value`, with their paths.

        The result is to be added to `known`; it is empty if `value` stands for no layer. After
        `x = self.up` it is {"x": ("up",)}. If x is a list, the key "x[]" has its layers.
        """
        listed = () if isinstance(value, ast.Name | ast.Attribute) else self.members(value)
        if isinstance(value, ast.Name):
            listed = self.known.get(value.id + LIST, ())
        return {
            key: paths for key, paths in ((name, self.of(value)), (name + LIST, listed)) if paths
        }

    def bind_each(self, target: ast.expr, source: ast.expr) -> None:
        """Record which layers the variable of a loop such as `for x in self.layers` stands for."""
        if isinstance(target, ast.Tuple) and called_name(source) in NUMBERED:
            target = target.elts[-1]
        if paths := self.members(source):
            for variable in ast.walk(target):
                if isinstance(variable, ast.Name):
                    self.known[variable.id] = paths

    def members(self, node: ast.expr) -> tuple[str, ...]:
        """Paths (dotted names) of the layers or weights that a loop over an expression gives.

        For a loop over `self.layers` this is ("layers.*",), where `*` stands for any name.
        """
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return tuple(path for part in node.elts for path in self.of(part))
        if isinstance(node, ast.Dict):
            return tuple(path for part in node.values for path in self.of(part))
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            return self.of(node.elt)
        if isinstance(node, ast.Name) and node.id + LIST in self.known:
            return self.known[node.id + LIST]
        if not isinstance(node, ast.Call):
            return tuple(f"{path}.*" for path in self.of(node) if path)
        owner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        if owner and called_name(node) in ALL_WEIGHTS:
            return tuple(path + WEIGHT for path in everywhere(self.of(owner[0])))
        if owner and called_name(node) in {"children", "named_children"}:
            return tuple(f"{path}.*".lstrip(".") for path in self.of(owner[0]))
        if owner and called_name(node) in {"modules", "named_modules"}:
            return everywhere(self.of(owner[0]))
        # enumerate(layers), zip(layers, x), layers.values()
        return tuple(path for part in (*node.args, *owner) for path in self.members(part))

    def of(self, node: ast.expr) -> tuple[str, ...]:
        """Paths (dotted names) of the layers that an expression means; empty if it means none.

        For `self.up` this is ("up",).
        """
        if isinstance(node, ast.Name):
            return self.known.get(node.id, ())
        if isinstance(node, ast.NamedExpr):
            return self.of(node.value)
        if isinstance(node, ast.IfExp):
            return (*self.of(node.body), *self.of(node.orelse))
        if isinstance(node, ast.Subscript):
            return self.members(node.value)
        if isinstance(node, ast.Attribute):
            return tuple(f"{path}.{node.attr}".lstrip(".") for path in self.of(node.value))
        return self._by_name(node) if isinstance(node, ast.Call) else ()

    def _by_name(self, node: ast.Call) -> tuple[str, ...]:
        """Paths (dotted names) of the layers that a call such as `getattr(self, name)` may give.

        For `getattr(self, "up")` this is ("up",); `*` stands for an unknown name.
        """
        owner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        if called_name(node) not in BY_NAME or len(arguments := [*owner, *node.args]) < 2:
            return ()
        told = getattr(arguments[1], "value", None)
        name = told if isinstance(told, str) else "*"
        return tuple(f"{path}.{name}".lstrip(".") for path in self.of(arguments[0]))


def everywhere(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The given paths (dotted names) of modules, and the same paths with `.**` at the end.

    ("mlp",) becomes ("mlp", "mlp.**"), where `mlp.**` means all layers below `mlp`.
    """
    below = (f"{path}{BELOW}".lstrip(".") for path in paths)
    return (*filter(None, paths), *below)


def called_name(node: ast.expr) -> str:
    """Name of the function or method that an expression calls; empty if it calls none."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))
