"""Gives freed memory back to the operating system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def trim_memory() -> None:
    """Give freed memory back to the system, if the C library supports this (glibc).

    Without this the C library keeps large weights after they were freed. The process then seems to
    need several times the memory of its largest layer.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
