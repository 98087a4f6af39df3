"""Evaluates conditions in a module's code, as far as the module's attributes decide them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

CHANGING = {"training"}
"""Attributes that change between calls. A condition on such an attribute stays `UNKNOWN`."""
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


def value_of(node: ast.expr, module: object) -> Any:
    """The value that a condition in a module's code, such as `self.scale > 1`, has for a module.

    The value is `UNKNOWN` if the module's attributes or config do not decide the condition.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "self":
        return module
    if isinstance(node, ast.Attribute):
        owner = value_of(node.value, module)
        found = UNKNOWN if owner is UNKNOWN else getattr(owner, node.attr, UNKNOWN)
        plain = found is None or isinstance(found, bool | int | float | str)
        inner = hasattr(found, "to_dict")  # a config
        return found if (plain or inner) and node.attr not in CHANGING else UNKNOWN
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found = value_of(node.operand, module)
        return UNKNOWN if found is UNKNOWN else not found
    if isinstance(node, ast.BoolOp):
        return _joined(node, module)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = value_of(node.left, module), value_of(node.comparators[0], module)
        compare = COMPARISONS.get(type(node.ops[0]))
        if compare is not None and left is not UNKNOWN and right is not UNKNOWN:
            return compare(left, right)
    return UNKNOWN


def _joined(node: ast.BoolOp, module: object) -> Any:
    """The value of conditions joined by `and` or `or`; `UNKNOWN` if it is not decided.

    One known condition may decide it: if one is false, `and` gives false.
    """
    values = [value_of(part, module) for part in node.values]
    settles = isinstance(node.op, ast.Or)
    if any(value is not UNKNOWN and bool(value) is settles for value in values):
        return settles
    return UNKNOWN if any(value is UNKNOWN for value in values) else not settles
