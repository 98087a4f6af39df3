"""Checks what config.json records about a step activation.

A step activation is a piecewise constant function: thresholds separate its pieces, and each piece
has a height.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isfinite
from typing import Any

MOST_STEPS, MOST_LEVEL = 64, 1e6
"""Limits of a valid step activation: the most thresholds, and a bound on the size of each number.
Real step activations stay below both."""
STEP_FIELDS: tuple[set[str], ...] = (
    {"module", "thresholds", "heights"},
    {"function", "thresholds", "heights", "values", "slopes", "gain"},
)
"""The two possible sets of fields of a step activation (a piecewise constant function): of one
that replaces a module, and of one before a function that the model calls; see `LayerPlan.step`."""


def is_step(value: object) -> bool:
    """Whether a value is a valid record of a step activation (a piecewise constant function).

    A valid record has all fields, bounded numbers and increasing thresholds.
    """
    if not isinstance(value, Mapping) or set(value) not in STEP_FIELDS:
        return False
    points = len(value["thresholds"]) if _are_levels(value["thresholds"]) else -1
    named = value["module"] if "module" in value else value["function"]
    return (
        isinstance(named, str)
        and bool(named)
        and 0 <= points <= MOST_STEPS
        and all(low < high for low, high in pairwise(value["thresholds"]))
        and _are_levels(value["heights"], points + 1)
        and ("module" in value or _fits_function(value, points + 1))
    )


def _fits_function(step: Mapping[str, Any], pieces: int) -> bool:
    """Whether `values`, `slopes` and `gain` in the record of a step activation are valid.

    A step activation is a piecewise constant function with `pieces` pieces. It has these three
    fields if the model calls another function after it; see `LayerPlan.step`.
    """
    return (
        _are_levels(step["values"], pieces)
        and _are_levels(step["slopes"], pieces)
        and all(step["slopes"])
        and is_number(step["gain"])
        and 0 < step["gain"] <= 1
    )


def _are_levels(value: object, count: int | None = None) -> bool:
    return (
        isinstance(value, list | tuple)
        and count in (None, len(value))
        and all(is_number(number) and abs(number) < MOST_LEVEL for number in value)
    )


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
