"""Tells how often a tensor was written to, so that a change of its values can be noticed."""

from __future__ import annotations

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 for an inference tensor, which counts no writes."""
    return -1 if tensor.is_inference() else tensor._version
