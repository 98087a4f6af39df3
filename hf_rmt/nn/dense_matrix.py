"""Tells which dense layers have one weight matrix, and converts weights to matrices and back.

A dense layer is one that is not compressed. A matrix has shape (out, in). It is the weight of a
linear layer, or the transposed weight of a `Conv1D` of transformers. For a convolution it is the
kernel with each filter as a row, shape (out, in k_h k_w), where the kernel has the height k_h and
the width k_w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MADE_ANEW = (
    "its weight or its bias is computed before each forward, by pruning, weight_norm or "
    "spectral_norm of torch.nn.utils; call prune.remove, remove_weight_norm or "
    "remove_spectral_norm first"
)


def has_matrix(module: nn.Module) -> bool:
    """Whether a layer is an `nn.Linear`, a `Conv1D`, or an `nn.Conv2d` with one group.

    Such a layer has one matrix. A subclass does not count, because it may use its weight in any
    way. A layer whose weight or bias is computed before each forward does not count either.
    """
    plain = type(module) is nn.Linear or is_conv1d(module) or is_plain_convolution(module)
    return plain and not is_made_anew(module)


def is_made_anew(module: nn.Module) -> bool:
    """Whether the weight or the bias is not a parameter, but is computed before each forward.

    Pruning, `weight_norm` and `spectral_norm` of `torch.nn.utils` have this effect.
    """
    return any(isinstance(module.__dict__.get(key), Tensor) for key in ("weight", "bias"))


def is_linear(module: nn.Module) -> bool:
    """Whether the class of a layer is `nn.Linear` itself, not a subclass."""
    return type(module) is nn.Linear


def is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is transformers' `Conv1D`, a linear layer with its weight transposed."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def is_convolution(module: nn.Module) -> bool:
    """Whether a layer is a convolution of torch, of any kind."""
    return isinstance(module, nn.modules.conv._ConvNd)


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether a layer has one group, and its class is `nn.Conv2d` itself, not a subclass."""
    return type(module) is nn.Conv2d and module.groups == 1


def why_no_matrix(module: nn.Module) -> str:
    """Why a convolution stays dense (not compressed).

    The text is empty for a convolution that can be compressed, and for any other layer.
    """
    if not is_convolution(module) or has_matrix(module):
        return ""
    if getattr(module, "transposed", False):
        return "a transposed convolution, and only nn.Conv2d has a compressed counterpart"
    groups = getattr(module, "groups", 1)
    if groups != 1:
        return f"a convolution in {groups} groups, which has many small matrices and not one"
    return f"a {type(module).__name__}, and only nn.Conv2d has a compressed counterpart"


def to_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a dense layer as a matrix of shape (out, in); a view if possible."""
    return weight.T if is_conv1d(module) else weight.flatten(1)


def to_weight(module: Any, matrix: Tensor) -> Tensor:
    """Turn a matrix, shape (out, in), back into the weight of a dense layer.

    This is the inverse of `to_matrix`. The result is contiguous, and may share the matrix's memory.
    """
    weight = matrix.T if is_conv1d(module) else matrix.reshape(module.weight.shape)
    return weight.contiguous()


def dense_shape(module: Any) -> tuple[int, int]:
    """Shape (out, in) of the matrix of a dense layer."""
    rows, columns = to_matrix(module, module.weight.detach().to("meta")).shape
    return rows, columns


@torch.no_grad()
def set_matrix(module: Any, matrix: Tensor) -> None:
    """Overwrite the weight of a dense layer in place, by a matrix of shape (out, in)."""
    module.weight.copy_(to_weight(module, matrix))
