"""What every compressed layer is, and the register of their kinds.

A kind is a word in the record of a saved model, such as `spiked`. Each class of that kind says
which dense layers it stands for, makes itself in their place, and turns back into them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hf_rmt.nn.dense_matrix import to_weight

_KINDS: dict[str, list[type[CompressedLayer]]] = {}


class CompressedLayer(nn.Module):
    """A layer that takes the place of a dense one.

    Attributes:
        kind: The word for this kind in plans and records.
        dense_class: Class of the layer whose place it takes.
        dense_requires_grad: Whether the weight of that layer was trained. It is used if this layer
            has no trainable weight of its own.
        dense_attributes: Attributes that a user had set on the weight of that layer; used in the
            same case.
        in_features: Columns of the matrix.
        out_features: Rows of the matrix.
        bias: Shape (out,) or None.
        took_bias: Whether the dense layer that was replaced had a bias. Loading needs this, because
            it replaces the same dense layer again. None if no layer was replaced.
    """

    kind: ClassVar[str]
    dense_class: type[nn.Module] = nn.Linear
    dense_requires_grad: bool = True
    dense_attributes: Mapping[str, Any] = MappingProxyType({})
    in_features: int
    out_features: int
    bias: nn.Parameter | None
    took_bias: bool | None = None

    @classmethod
    @abstractmethod
    def stands_for(cls, dense: nn.Module) -> bool:
        """Whether the class can take the place of a dense layer."""

    @classmethod
    @abstractmethod
    def empty_like(
        cls, dense: Any, rank: int, noise: str, *, device: torch.device | str | None = None
    ) -> Self:
        """An empty layer that can take the place of a dense one.

        Args:
            dense: A layer that the class stands for.
            rank: Number of directions in the signal.
            noise: How the noise is stored, one of `NOISE_KINDS`.
            device: Of the tensors; None for that of the dense layer.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """The dense weight with the same effect as the layer, shape (out, in)."""

    def empty_dense(self) -> nn.Module:
        """A dense layer of this shape, on the current device and with arbitrary values."""
        return nn.Linear(self.in_features, self.out_features)

    def dense_outline(self) -> nn.Module:
        """The dense layer that acts as this one, without values: on the meta device."""
        with torch.device("meta"):
            dense: Any = self.empty_dense()
        if self.bias is None:
            dense.bias = None
        return dense

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The dense layer that acts as this one, with tensors of its own.

        Args:
            dtype: Of the weight; None for that of the layer.
        """
        dense: Any = self.dense_outline()
        matrix = self.dense().detach()
        matrix = matrix if dtype is None else matrix.to(dtype)
        dense.weight = nn.Parameter(to_weight(dense, matrix))
        bias = None if self.bias is None else self.bias.detach().to(matrix.dtype, copy=True)
        dense.bias = None if bias is None else nn.Parameter(bias)
        return dense.train(self.training)


def autocast_input(x: Tensor) -> Tensor:
    """The input in the dtype of autocast, if autocast is enabled on the device of the input.

    Raises:
        TypeError: If the input is not real floating point; a dense layer refuses it too.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"a compressed layer takes inputs in a real floating-point dtype, got {x.dtype}; "
            "convert them, for example with x.float()"
        )
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):  # autocast does nothing on meta
        return x
    return x.to(torch.get_autocast_dtype(kind))


def register_layer(layer: type[CompressedLayer]) -> type[CompressedLayer]:
    """Make a class of compressed layers known by its kind; a class decorator.

    Args:
        layer: The class. If several classes have the same kind, the one registered last is tried
            first.
    """
    _KINDS.setdefault(layer.kind, []).insert(0, layer)
    return layer


def compressed_like(
    dense: Any, kind: str, rank: int, noise: str, *, device: torch.device | str | None = None
) -> CompressedLayer:
    """The layer of a kind, with nothing in it yet, that takes the place of a dense one.

    Args:
        dense: A layer that has a matrix.
        kind: As `CompressedLayer.kind`.
        rank: Number of directions in the signal.
        noise: How the noise is stored, one of `NOISE_KINDS`.
        device: Of the tensors; None for that of the dense layer.

    Returns:
        The layer, with a bias of its own where the dense one has any.

    Raises:
        ValueError: If the kind is unknown, or none of its classes stands for the layer.
    """
    if kind not in _KINDS:
        raise ValueError(
            f"kind must be {' or '.join(sorted(_KINDS))}, got {kind!r}; a newer hf_rmt or another "
            "package wrote it: upgrade, or import that package"
        )
    for layer in _KINDS[kind]:
        if layer.stands_for(dense):
            return layer.empty_like(dense, rank, noise, device=device).train(dense.training)
    raise ValueError(f"no layer of kind {kind!r} stands for a {type(dense).__name__}")


def is_compressed(module: object) -> bool:
    """Whether a module is a compressed layer."""
    return isinstance(module, CompressedLayer)
