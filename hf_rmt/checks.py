"""Checks of single values; an error names the value, the rule and the remedy.

A check raises a TypeError for a wrong type and a ValueError for a wrong value. Some checks return
the value as a plain Python value.
"""

from __future__ import annotations

import re
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def plain_number(value: Any) -> Any:
    """The number in a NumPy scalar, or in an array or tensor without dimensions.

    Args:
        value: Any value; a value of another kind is returned as it is.

    Examples:
        >>> import numpy as np
        >>> plain_number(np.array(3)), plain_number(np.bool_(True)), plain_number("a")
        (3, True, 'a')
    """
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def check_number(name: str, value: object, low: str = "[0", high: str = "1]") -> float:
    """Return a number as a float; refuse a number outside the interval from `low` to `high`.

    A round bracket excludes the end, as in "(0". A square bracket includes it, as in "1]".
    """
    rule, plain = f"{low}, {high}", plain_number(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name} must be a number in {rule}, got {value!r}")
    number, least, most = float(plain), float(low[1:]), float(high[:-1])
    at_end = (number == least and low[0] == "(") or (number == most and high[-1] == ")")
    if at_end or not least <= number <= most:
        raise ValueError(f"{name} must lie in {rule}, got {value!r}")
    return number


def check_integer(name: str, value: object, low: int) -> int:
    """Return a whole number as an int; refuse a number below `low`."""
    plain = plain_number(value)
    if isinstance(plain, bool) or not isinstance(plain, Integral):
        raise TypeError(f"{name} must be an integer of at least {low}, got {value!r}")
    if plain < low:
        raise ValueError(f"{name} must be at least {low}, got {plain}")
    return int(plain)


def check_names(name: str, value: object) -> list[str] | None:
    """Return names as a plain list, and None as None; refuse an empty list and an empty name."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"{name} must be a list of module names, got {value!r}")
    if not value:
        raise ValueError(f"{name} is an empty list, which selects nothing; leave it at None")
    if not all(entry.strip(" .") for entry in value):
        raise ValueError(
            f"{name}={value!r} holds an empty name, which selects nothing; take it out, or leave "
            f"{name} at None"
        )
    return list(value)


def check_expression(name: str, value: object) -> None:
    """Refuse a string that is empty or not a regular expression; accept other types."""
    if not isinstance(value, str):
        return
    if not value:
        raise ValueError(f"{name}='' selects nothing; leave it at None, or name layers")
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{name} must be a regular expression if it is a string, got {value!r}: {error}; "
            "correct it, or pass a list of names"
        ) from error


def check_path(name: str, value: object) -> None:
    """Refuse an empty path, because `Path` takes it as the working folder."""
    if value == "":
        raise ValueError(
            f"{name} must name a file or a folder, got ''; write '.' for the current folder"
        )


def check_folder(name: str, value: str | PathLike[str]) -> Path:
    """Refuse an empty path, a file, and a path below a file.

    Returns:
        The folder, or the nearest folder above it that exists.

    Raises:
        NotADirectoryError: If the path is a file or lies below a file.
        ValueError: If the path is empty.
    """
    check_path(name, value)
    path = Path(value)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise NotADirectoryError(
            f"{name} must be a folder, but {there} is a file; pass another path"
        )
    return there


def checked_score(value: Any) -> float:
    """The score that a user's `evaluate` returned, as a float.

    Args:
        value: A number, or an array or a tensor that holds one number.

    Raises:
        TypeError: If the value is not one number.
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"evaluate must return a number, where higher is better, got {value!r}; return a "
            "single number, such as one entry of this value"
        ) from error
