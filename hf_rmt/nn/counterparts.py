"""Which layers have a matrix, how their weight becomes one, and which layer stands for which.

A matrix has shape (out, in): the weight of a linear layer, that of transformers' `Conv1D`
transposed, the kernel of a convolution with each filter a row, (out, in k_h k_w).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.nn.spiked import SpikedLinear
from hf_rmt.nn.spiked_conv import SpikedConv2d, geometry_of
from hf_rmt.nn.step_activation import StepActivation
from hf_rmt.nn.ternary import TernaryLinear

COMPRESSED = (SpikedLinear, TernaryLinear)
"""What takes the place of dense layers."""


def has_matrix(module: nn.Module) -> bool:
    """Whether a dense layer is one matrix; a subclass may do anything with its weight."""
    return type(module) is nn.Linear or _is_conv1d(module) or _is_plain_convolution(module)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is torch's own linear one, and no subclass."""
    return type(module) is nn.Linear


def is_convolution(module: nn.Module) -> bool:
    """Whether a layer is a convolution of torch, of whatever kind."""
    return isinstance(module, nn.modules.conv._ConvNd)


def why_no_matrix(module: nn.Module) -> str:
    """Why a convolution is left dense; empty for one that is not."""
    if not is_convolution(module) or has_matrix(module):
        return ""
    if getattr(module, "transposed", False):
        return "a transposed convolution, whose matrix would map channels to patches"
    groups = getattr(module, "groups", 1)
    if groups != 1:
        return f"a convolution in {groups} groups, so many small matrices in place of one"
    return f"a {type(module).__name__}, and only nn.Conv2d has a compressed counterpart"


def to_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """The matrix of a weight that has the shape of a dense layer's, a view where it can be."""
    return weight.T if _is_conv1d(module) else weight.flatten(1)


def to_weight(module: Any, matrix: Tensor) -> Tensor:
    """Inverse of `to_matrix`, with its own memory laid out row by row."""
    weight = matrix.T if _is_conv1d(module) else matrix.reshape(module.weight.shape)
    return weight.contiguous()


def weight_matrix(module: Any) -> Tensor:
    """The matrix of a layer, dense or compressed, without a gradient: as it acts."""
    if isinstance(module, COMPRESSED):
        return module.dense().detach()
    return to_matrix(module, module.weight.detach())


def matrix_shape(module: Any) -> tuple[int, int]:
    """Shape (out, in) of the matrix of a layer, dense or compressed."""
    if isinstance(module, COMPRESSED):
        return module.out_features, module.in_features
    rows, columns = to_matrix(module, module.weight.detach().to("meta")).shape
    return rows, columns


@torch.no_grad()
def set_matrix(module: Any, matrix: Tensor) -> None:
    """Overwrite the weight of a dense layer, in place."""
    module.weight.copy_(to_weight(module, matrix))


def spiked_like(
    module: Any, rank: int, noise: str, *, device: torch.device | str | None = None
) -> SpikedLinear:
    """The compressed layer, with nothing in it yet, that takes the place of a dense one.

    Args:
        module: A layer that has a matrix.
        rank: Number of directions in the signal.
        noise: One of `NOISE_KINDS`.
        device: Of the tensors; None for that of the dense layer.

    Returns:
        The layer, with a bias of its own where the dense one has any.
    """
    options: dict[str, Any] = {
        "noise": noise,
        "bias": module.bias is not None,
        "device": device or module.weight.device,
        "dtype": module.weight.dtype,
    }
    if isinstance(module, nn.Conv2d):
        options |= geometry_of(module)
        layer: SpikedLinear = SpikedConv2d(module.in_channels, module.out_channels, rank, **options)
    else:
        rows, columns = matrix_shape(module)
        layer = SpikedLinear(columns, rows, rank, **options)
    layer.dense_class = type(module)
    return layer.train(module.training)


def compressed_like(
    module: Any, kind: str, rank: int, noise: str, *, device: torch.device | str | None = None
) -> SpikedLinear | TernaryLinear:
    """The layer of a kind, with nothing in it yet, that takes the place of a dense one.

    Args:
        module: A layer that has a matrix.
        kind: `spiked` or `ternary`.
        rank: As for `spiked_like`.
        noise: As for `spiked_like`.
        device: Of the tensors; None for that of the dense layer.

    Returns:
        The layer, with a bias of its own where the dense one has any.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "spiked":
        return spiked_like(module, rank, noise, device=device)
    if kind != "ternary":
        raise ValueError(
            f"kind must be spiked or ternary, got {kind!r}; a newer hf_rmt wrote it, upgrade"
        )
    rows, columns = matrix_shape(module)
    layer = TernaryLinear(
        columns,
        rows,
        bias=module.bias is not None,
        device=device or module.weight.device,
        dtype=module.weight.dtype,
    )
    return layer.train(module.training)


def dense_like(
    layer: SpikedLinear | TernaryLinear, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """The dense layer that acts as a compressed one, of the class that was compressed.

    Args:
        layer: A compressed layer.
        dtype: Of the weight; None for that of the factors.

    Returns:
        The layer with tensors of its own.
    """
    with torch.device("meta"):
        dense: Any = _empty_dense(layer)
    matrix = layer.dense().detach()
    matrix = matrix if dtype is None else matrix.to(dtype)
    dense.weight = nn.Parameter(to_weight(dense, matrix))
    dense.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(matrix.dtype))
    return dense.train(layer.training)


def _empty_dense(layer: SpikedLinear | TernaryLinear) -> nn.Module:
    if isinstance(layer, SpikedConv2d):
        return nn.Conv2d(layer.in_channels, layer.out_channels, **geometry_of(layer))
    if isinstance(layer, TernaryLinear) or layer.dense_class is nn.Linear:
        return nn.Linear(layer.in_features, layer.out_features)
    return layer.dense_class(layer.out_features, layer.in_features)  # Conv1D's order


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is transformers' `Conv1D`, a linear layer with its weight transposed."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _is_plain_convolution(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.groups == 1


def densify(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace every compressed layer by the dense one it acts as, in place.

    Args:
        model: A model with compressed layers.
        dtype: Of the dense weights; None keeps each layer's own.

    Returns:
        The model.

    Raises:
        ValueError: If it has step activations, which have no dense counterpart.
    """
    steps = [name for name, part in model.named_modules() if isinstance(part, StepActivation)]
    if steps:
        raise ValueError(
            f"{steps[0]!r} is a step activation, which only this package has, so no plain model "
            "computes the same; compress with activation='keep' for one that can be exported"
        )
    for name, module in list(model.named_modules()):
        if isinstance(module, COMPRESSED):
            model.set_submodule(name, dense_like(module, dtype=dtype))
    return model


def place_step(model: nn.Module, linear: str, step: Mapping[str, Any]) -> None:
    """Put a recorded step in the place of the activation that stands beside a linear.

    Args:
        model: The model.
        linear: Runtime name of the linear, dense or compressed.
        step: `module`, the name of the activation in the linear's parent, `thresholds`, `heights`.
    """
    layer: Any = model.get_submodule(linear)
    parent = model.get_submodule(linear.rpartition(".")[0])
    like = layer.scale if isinstance(layer, TernaryLinear) else layer.weight
    activation = StepActivation(
        step["thresholds"], step["heights"], device=like.device, dtype=like.dtype
    )
    setattr(parent, step["module"], activation.train(layer.training))


def _empty_layer(
    dense: nn.Module, name: str, entry: Mapping[str, Any]
) -> SpikedLinear | TernaryLinear:
    """The recorded layer with nothing in it yet, on the device of the one it replaces."""
    shape = tuple(entry["shape"])
    if not has_matrix(dense) or matrix_shape(dense) != shape:
        found = matrix_shape(dense) if has_matrix(dense) else type(dense)
        raise ValueError(
            f"layer {name!r} was compressed as a matrix of shape {shape}, this model has {found}; "
            "its config.json belongs to another model"
        )
    kind = entry.get("kind", "spiked")
    return compressed_like(dense, kind, entry["rank"], entry["noise"])
