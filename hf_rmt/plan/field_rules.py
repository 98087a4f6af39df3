"""Checks the fields that config.json records for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_rmt.plan.outcomes import Cause, Outcome
from hf_rmt.plan.step_record import MOST_STEPS, is_number, is_step


def checked_fields(name: str, entry: object, known: set[str]) -> dict[str, Any]:
    """The fields of a recorded layer, checked and converted to their types.

    Args:
        name: Name of the layer.
        entry: The fields of this layer in config.json.
        known: Names of the fields that this version of the package has.

    Raises:
        ValueError: If the entry is no mapping, lacks a field, or has a field that is unknown or
            whose value is invalid. The error names the layer and the field.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"config.json, layer {name!r} must be a mapping of fields, got {entry!r}; the file is "
            "damaged, so download or save it again"
        )
    values = dict(entry)
    if (replaced := values.pop("compressed", None)) is not None:  # from a version without outcomes
        rewritten = bool(values.get("dropped_energy"))
        values["outcome"] = (Outcome.KEPT, Outcome.REWRITTEN)[rewritten]
        if replaced:
            values["outcome"] = Outcome.REPLACED
    if unknown := set(values) - known:
        raise ValueError(
            f"config.json, layer {name!r} has unknown fields {sorted(unknown)}; "
            "it was written by a newer hf_rmt, upgrade the package"
        )
    for key in {"shape", "outcome"} - set(values):
        raise _wrong(name, key, "is missing")
    for key, value in values.items():
        rule, holds = _RULES[key]
        if not holds(value):
            raise _wrong(name, key, f"must be {rule}, got {value!r}")
    values["shape"] = tuple(values["shape"])
    values["outcome"] = Outcome(values["outcome"])
    values["cause"] = Cause(values.get("cause", ""))
    return values


def _wrong(name: str, key: str, what: str) -> ValueError:
    return ValueError(
        f"config.json, layer {name!r}, field {key!r} {what}; the file is damaged or was changed, "
        "so download or save it again"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_energy(value: object) -> bool:
    return is_number(value) and value >= -ROUNDING  # type: ignore[operator]


def _is_error(value: object) -> bool:
    return value is None or (is_number(value) and value >= 0)  # type: ignore[operator]


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(_is_count(side) and 0 < side < MOST_SIDE for side in value)
    )


ROUNDING = 1e-6
MOST_SIDE = 2**31
"""Every side of a weight matrix must be smaller than this; no model has larger matrices."""
_COUNT = ("a whole number of at least 0", _is_count)
_ENERGY = ("a number of at least 0", _is_energy)
"""The rule for an energy: the squared norm of a part of a weight, divided by that of the weight. It
may exceed 1, because parts that calibration chooses need not be orthogonal."""
_TEXT = ("a text", lambda value: isinstance(value, str))
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": _TEXT,
    "shape": (f"two whole numbers from 1 to {MOST_SIDE - 1}", _is_shape),
    "outcome": (f"one of {', '.join(Outcome)}", lambda value: value in list(Outcome)),
    "rank": _COUNT,
    "noise": _TEXT,
    "phase": _TEXT,
    "n_spikes": _COUNT,
    "upper_edge": ("a number or null", lambda value: value is None or is_number(value)),
    "signal_energy": _ENERGY,
    "dropped_energy": _ENERGY,
    "bits": _COUNT,
    "dense_bits": _COUNT,
    "rounding_error": ("a number of at least 0, or null", _is_error),
    "nonzero": ("a whole number or null", lambda value: value is None or _is_count(value)),
    "latency": ("a number or null", lambda value: value is None or is_number(value)),
    "reason": _TEXT,
    "cause": ("a known cause", lambda value: value in list(Cause)),
    "kind": _TEXT,
    "step": (
        f"null, or a mapping with module or function, at most {MOST_STEPS} increasing thresholds, "
        "and one height more than thresholds (with function also one value and one slope other "
        "than 0 for each height, and a gain in (0, 1])",
        lambda value: value is None or is_step(value),
    ),
}
"""For each field of a layer in config.json: its rule in words, and a check of its value."""
