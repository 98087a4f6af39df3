"""A linear layer with packed, frozen weights: each is -1, 0 or 1, times a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_rmt.checks import check_choice, check_integer, check_number
from hf_rmt.nn.dense_matrix import dense_shape, is_linear
from hf_rmt.nn.kept import Kept, identities
from hf_rmt.nn.layers.compressed_layer import CompressedLayer, register_layer
from hf_rmt.nn.stores.ternary_packing import (
    SCALE_OPTIONS,
    from_fifths,
    pack_trits,
    ternarize,
    to_fifths,
    unpack_trits,
)
from hf_rmt.nn.ternary_product import ternary_linear

LAYOUTS = ("packed", "int8", "dense")


@register_layer
class TernaryLinear(CompressedLayer):
    """y = x (s T)' + bias: T is a frozen matrix in {-1, 0, 1}, s a scale, and ' the transpose.

    The buffer `weight` holds T, several entries in a byte. It is int8, so that casts of the model
    do not change it. Its shape is not that of a dense weight, so a plain linear layer cannot load
    it. In the state dict, and in a loaded layer until its first use, a byte holds five entries:
    shape (ceil(out in / 5),). In use a byte holds four, which unpack faster: shape
    (1, ceil(out in / 4)). Only the bias trains; to train the weight, see `LatentTernaryLinear`.

    Attributes:
        step: None, or a step function (`StepBefore`) that is applied to y, for a model that calls
            its activation as a function, not as a module. `dense` and `to_linear` leave it out.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.
        scale: `row` for one scale per row, or `tensor` for a single scale.
        layout: `packed` unpacks T in every forward. Outputs are those of the dense layer, up to the
            rounding of its dtype. `int8` is for a CPU with integer dot products (VNNI). It keeps an
            unpacked copy, one byte per weight, and rounds the inputs to 16 bits, relative to the
            largest entry of their row. This changes outputs by at most about 1e-4 of their spread.
            On other devices, and for the smallest layers, `int8` does the same as `dense`. `dense`
            keeps a copy in the dtype of the scales. The layout is not part of the state dict.
        device: Device of the tensors, which hold zeros until a state dict fills them.
        dtype: Dtype of the scales and the bias.

    Raises:
        TypeError: If a width is no whole number.
        ValueError: If a width is negative, or scale or layout is unknown.

    Examples:
        >>> layer = TernaryLinear.from_linear(nn.Linear(6, 2))
        >>> layer.dense().shape, layer.weight.shape
        (torch.Size([2, 6]), torch.Size([1, 3]))
    """

    kind = "ternary"
    weight: Tensor
    scale: Tensor
    unpacked: Tensor | None
    step: nn.Module | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        scale: str = "row",
        layout: str = "packed",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("scale", scale, SCALE_OPTIONS)
        self.in_features = check_integer("in_features", in_features, 0)
        self.out_features = check_integer("out_features", out_features, 0)
        codes = torch.zeros(-(-self._size // 5), dtype=torch.int8, device=device)
        self.register_buffer("weight", codes)
        rows = self.out_features if scale == "row" else 1
        self.register_buffer("scale", torch.zeros(rows, device=device, dtype=dtype))
        self.register_buffer("unpacked", None, persistent=False)
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros)
        self.register_module("step", None)
        self._source = Kept()
        self.layout = layout

    @classmethod
    def stands_for(cls, dense: nn.Module) -> bool:
        """Whether this class can replace a layer: true for `nn.Linear`, not for its subclasses."""
        return is_linear(dense)

    @classmethod
    def empty_like(
        cls, dense: Any, rank: int, noise: str, *, device: torch.device | str | None = None
    ) -> Self:
        """See `CompressedLayer.empty_like`; rank and noise are not used here."""
        rows, columns = dense_shape(dense)
        return cls(
            columns,
            rows,
            bias=dense.bias is not None,
            device=device or dense.weight.device,
            dtype=dense.weight.dtype,
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        sparsity: float | None = None,
        scale: str = "row",
        layout: str = "packed",
    ) -> TernaryLinear:
        """The ternary layer (weights -1, 0 or 1 times a scale) nearest to a dense layer.

        Args:
            linear: The dense layer; it is not changed. Its bias is shared, not copied.
            sparsity: Share of zeros, in [0, 1]; None for the share with the least squared error.
            scale: `row` for one scale per row, or `tensor` for a single scale.
            layout: How the weight lies in memory, as in `TernaryLinear`.

        Returns:
            The layer, on the device and in the dtype of the dense one.

        Raises:
            TypeError: If the dense layer is not linear.
            ValueError: If an option is out of range, the layer has no inputs, or a weight is nan or
                infinite.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"from_linear takes an nn.Linear, got {linear!r}; convolutions have no ternary "
                "counterpart"
            )
        weight = linear.weight.detach()
        signs, scales = ternarize(weight, sparsity=sparsity, scale=scale)
        options: dict[str, Any] = {"scale": scale, "layout": layout}
        options |= {"device": weight.device, "dtype": weight.dtype}
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, bias=bias, **options)
        layer.weight = pack_trits(signs)
        layer.scale.copy_(scales)
        layer.bias = linear.bias
        return layer.train(linear.training)

    @classmethod
    def random(
        cls,
        in_features: int,
        out_features: int,
        sparsity: float,
        seed: int,
        *,
        layout: str = "packed",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TernaryLinear:
        """A ternary layer of independent random weights with mean 0 and variance 1, without a bias.

        A weight is 0 with probability e. It is 1 / sqrt(1 - e) or -1 / sqrt(1 - e), each with
        probability (1 - e) / 2. The theory of wide networks assumes this mean and variance.

        Args:
            in_features: Width of the input.
            out_features: Width of the output.
            sparsity: The probability e of a zero, in [0, 1).
            seed: Seed of the weights, which are the same on every device.
            layout: How the weight lies in memory, as in `TernaryLinear`.
            device: Device of the layer.
            dtype: Dtype of the scale 1 / sqrt(1 - e).

        Returns:
            The layer.

        Raises:
            TypeError: If a width is no whole number, or the sparsity is no number.
            ValueError: If an option is out of range.
        """
        sparsity = check_number("sparsity", sparsity, high="1)")
        factory: dict[str, Any] = {"device": device, "dtype": dtype, "layout": layout}
        layer = cls(in_features, out_features, bias=False, scale="tensor", **factory)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(layer._size, generator=generator, dtype=torch.float64, device="cpu")
        signs = (uniform >= (1 + sparsity) / 2).char() - (uniform < (1 - sparsity) / 2).char()
        layer.weight = pack_trits(signs).to(layer.weight.device)
        layer.scale.fill_(1 / math.sqrt(1 - sparsity))
        return layer

    @property
    def layout(self) -> str:
        """How the weight lies in memory, one of `LAYOUTS`. A user may set this at any time."""
        return self._layout

    @layout.setter
    def layout(self, layout: str) -> None:
        check_choice("layout", layout, LAYOUTS)
        self._layout = layout
        self.unpacked = None

    @property
    def _size(self) -> int:
        return self.in_features * self.out_features

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight, signs (-1, 0 or 1) times scales, as a tensor of shape (out, in).

        Args:
            dtype: Dtype of the result; None for the dtype of the scales.
        """
        dtype = dtype or self.scale.dtype
        return self._signs().to(dtype).mul_(self.scale.to(dtype)[:, None])

    def to_linear(self) -> nn.Linear:
        """The plain linear layer with this weight and the same bias tensor.

        If the ternary layer has a step function (see `TernaryLinear.step`), it is left out.
        """
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        linear.weight = nn.Parameter(self.dense())
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to an input of shape (..., in).

        The result has the dtype of the input; under autocast, it has the dtype of autocast.
        """
        result = ternary_linear(input, self)
        return result if self.step is None else self.step(result)

    def _signs(self) -> Tensor:
        shape = self.out_features, self.in_features
        if self.weight.dim() == 1:
            with torch.inference_mode(False):  # an inference tensor could not be written to later
                self.weight = pack_trits(from_fifths(self.weight, shape))
        return unpack_trits(self.weight, shape)

    def _kept(self, dtype: torch.dtype) -> Tensor:
        """The unpacked weight, which is kept in memory until the packed one changes.

        For the dtype int8 it holds the signs -1, 0 and 1, otherwise the signs times the scales.
        """
        kept, traced = self.unpacked, torch.compiler.is_compiling()  # traces have no addresses
        if kept is not None and kept.dtype == dtype:
            source = self.weight, self.scale, kept
            if traced or self._source.get(identities(source)):
                return kept
        with torch.inference_mode(False):  # tensors made in that mode record no writes
            if not traced and self.scale.is_inference():
                self.scale = self.scale.clone()
            kept = self.unpacked = self._signs() if dtype == torch.int8 else self.dense()
        if not traced:
            source = self.weight, self.scale, kept
            self._source.put(identities(source), True, source)
        return kept

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.dim() == 2:
            destination[f"{prefix}weight"] = to_fifths(self._signs())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}weight" in state_dict:
            self.weight = self.weight.new_empty(-(-self._size // 5))
        self.unpacked = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def memory_bytes(self) -> int:
        """Bytes of memory that the layer takes once it has run."""
        width = {"packed": 0, "int8": 1, "dense": self.scale.element_size()}[self._layout]
        tensors = (self.weight, self.scale, *(() if self.bias is None else (self.bias,)))
        return width * self._size + sum(tensor.nbytes for tensor in tensors)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        scale = "row" if len(self.scale) == self.out_features else "tensor"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scale={scale!r}, layout={self._layout!r}"
        )
