"""The base class of compressed layers, and the register of their kinds.

A kind is a word, such as `spiked`, that names the type of a layer in the config.json of a saved
model. Several classes can have the same kind. Each class says which dense layers it can replace,
makes an empty layer for such a layer, and converts it back.
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
    """A compressed layer, which takes the place of a dense (not compressed) one.

    Attributes:
        kind: The word for this type of layer, such as `spiked`, in plans and saved models.
        dense_class: Class of the dense layer that this layer replaces.
        dense_requires_grad: Whether the weight of the dense layer required gradients. It is stored
            here only if this layer has no trainable weight of its own.
        dense_attributes: Attributes that a user had set on the weight of the dense layer. They too
            are stored here only if this layer has no trainable weight of its own.
        in_features: Number of columns of the weight matrix.
        out_features: Number of rows of the weight matrix.
        bias: Shape (out,), or None if the layer has no bias.
        took_bias: Whether the dense layer that was replaced had a bias. Loading needs this, because
            loading replaces the same dense layer again. None if no layer was replaced.
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
        """Whether layers of this class can take the place of this dense layer."""

    @classmethod
    @abstractmethod
    def empty_like(
        cls, dense: Any, rank: int, noise: str, *, device: torch.device | str | None = None
    ) -> Self:
        """Make a layer that can replace a dense layer; its tensors are filled later.

        Args:
            dense: A layer that the class can replace; see `stands_for`.
            rank: Rank of the signal, which is the low-rank part of the weight.
            noise: How the noise, the rest of the weight, is stored; one of `NOISE_KINDS`.
            device: Device of the tensors; None for the device of the dense layer.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight of a dense layer that computes the same as this layer, shape (out, in)."""

    def empty_dense(self) -> nn.Module:
        """A dense layer of the same shape, with arbitrary values, on torch's default device."""
        return nn.Linear(self.in_features, self.out_features)

    def dense_outline(self) -> nn.Module:
        """A dense layer without values (on the meta device), like the one that was replaced."""
        with torch.device("meta"):
            dense: Any = self.empty_dense()
        if self.bias is None:
            dense.bias = None
        return dense

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A dense layer that computes the same as this one, with tensors of its own.

        Args:
            dtype: Dtype of the weight and the bias; None for the dtype of the layer.
        """
        dense: Any = self.dense_outline()
        matrix = self.dense().detach()
        matrix = matrix if dtype is None else matrix.to(dtype)
        dense.weight = nn.Parameter(to_weight(dense, matrix))
        bias = None if self.bias is None else self.bias.detach().to(matrix.dtype, copy=True)
        dense.bias = None if bias is None else nn.Parameter(bias)
        return dense.train(self.training)


def autocast_input(x: Tensor) -> Tensor:
    """The input x of a layer, converted to the dtype of autocast if autocast is on for its device.

    Raises:
        TypeError: If the dtype of the input is not real floating point.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"a compressed layer takes inputs in a real floating-point dtype, got {x.dtype}; "
            "convert them, for example with x.float()"
        )
    kind = "cpu" if x.is_cpu else x.device.type  # the name of a device takes 0.3 us to read
    if x.is_meta or not torch.is_autocast_enabled(kind):  # autocast does nothing on meta
        return x
    return x.to(torch.get_autocast_dtype(kind))


def register_layer(layer: type[CompressedLayer]) -> type[CompressedLayer]:
    """Register a class of compressed layers under its `kind`, a word such as `spiked`.

    Use this as a class decorator.

    Args:
        layer: The class. If several classes have the same kind, `compressed_like` takes the one
            that was registered last, among those that can replace the dense layer.
    """
    _KINDS.setdefault(layer.kind, []).insert(0, layer)
    return layer


def compressed_like(
    dense: Any, kind: str, rank: int, noise: str, *, device: torch.device | str | None = None
) -> CompressedLayer:
    """Make a compressed layer that can replace a dense layer; its tensors are filled later.

    Args:
        dense: A dense layer with a weight matrix; see `has_matrix`.
        kind: The word for the type of compressed layer, such as `spiked`.
        rank: Rank of the signal, which is the low-rank part of the weight.
        noise: How the noise, the rest of the weight, is stored; one of `NOISE_KINDS`.
        device: Device of the tensors; None for the device of the dense layer.

    Returns:
        The layer. It has its own bias if the dense layer has a bias.

    Raises:
        ValueError: If the kind is unknown, or none of its classes can replace the layer.
    """
    if kind not in _KINDS:
        raise ValueError(
            f"kind must be {' or '.join(sorted(_KINDS))}, got {kind!r}; a newer hf_rmt or another "
            "package made this model: upgrade hf_rmt, or import that package"
        )
    for layer in _KINDS[kind]:
        if layer.stands_for(dense):
            return layer.empty_like(dense, rank, noise, device=device).train(dense.training)
    raise ValueError(
        f"no layer of kind {kind!r} can replace a {type(dense).__name__}; leave this layer "
        "dense, or choose another kind"
    )


def is_compressed(module: object) -> bool:
    """Whether a module is a compressed layer, a subclass of `CompressedLayer`."""
    return isinstance(module, CompressedLayer)
