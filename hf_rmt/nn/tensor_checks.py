"""Checks of tensors that were loaded, and how often a tensor was written to."""

from __future__ import annotations

import torch
from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 for an inference tensor, which counts no writes."""
    return -1 if tensor.is_inference() else tensor._version


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Refuse a tensor that was not loaded, or that does not fit the layer.

    Args:
        name: Name of the tensor, for the message.
        tensor: The tensor.
        shape: Shape that the tensor must have.
        dtype: Dtype that the tensor must have; None for any floating dtype with finite entries.

    Raises:
        ValueError: If the tensor is on the meta device, has another shape or dtype, or has entries
            that are nan or infinite.
    """
    if tensor.device.type == "meta":
        raise ValueError(
            f"{name} was not loaded; the file lacks it, save or download the model again"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} must have shape {shape}, got {tuple(tensor.shape)}; the file belongs to "
            "another model or is damaged"
        )
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}; do not cast packed tensors")
    if dtype is None and not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a floating dtype, got {tensor.dtype}")
    if dtype is None and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds nan or inf; the file is damaged, save or download it again")
