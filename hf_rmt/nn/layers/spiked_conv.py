"""A convolution whose kernel is a low-rank signal plus noise, which is the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from hf_rmt.nn.dense_matrix import is_plain_convolution
from hf_rmt.nn.layers.compressed_layer import register_layer
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.noise_product import cast, split_factors

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


@register_layer
class SpikedConv2d(SpikedLinear):
    """The convolution y = x * (left right + noise) + bias, where * stands for convolution.

    The kernel, of height k_h and width k_w, is a matrix of shape (out, in k_h k_w), where in and
    out are the numbers of channels. It is a sum of a signal and the rest, the noise. The signal is
    the product of two factors, `left` and `right`, and has rank r. Two convolutions apply it: the
    first has the kernel's size and r output channels, the second has the size 1 x 1. The noise is
    unpacked into a dense kernel. All else is as in a `SpikedLinear` with in k_h k_w input features.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        rank: Rank of the signal, in [0, min(out, in k_h k_w)].
        kernel_size: Height and width of the kernel, or one number for both.
        stride: As in `torch.nn.Conv2d`.
        padding: As in `torch.nn.Conv2d`, `same` and `valid` included.
        dilation: As in `torch.nn.Conv2d`.
        padding_mode: As in `torch.nn.Conv2d`.
        noise: How the noise, the rest of the kernel, is stored; one of `NOISE_KINDS`.
        bias: Whether there is a bias.
        device: Device of the tensors, which hold zeros until a state dict fills them.
        dtype: Dtype of the factors and the bias, and of the noise if it is kept (`keep`).

    Raises:
        ValueError: If the rank lies outside its range, the kind of noise is unknown, or
            `torch.nn.Conv2d` does not accept an argument.

    Examples:
        >>> layer = SpikedConv2d(3, 8, 2, kernel_size=3, stride=2, padding=1)
        >>> layer(torch.ones(1, 3, 6, 6)).shape, layer.weight.shape
        (torch.Size([1, 8, 3, 3]), torch.Size([2, 35]))
    """

    dense_class = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        *,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        noise: str = "int8",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dense = nn.Conv2d(  # checks the geometry, and gives it as pairs
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            padding_mode=padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
        super().__init__(
            in_channels * math.prod(dense.kernel_size),
            out_channels,
            rank,
            noise=noise,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, 1
        self.kernel_size, self.stride = dense.kernel_size, dense.stride
        self.padding, self.dilation = dense.padding, dense.dilation
        self.padding_mode = dense.padding_mode

    @classmethod
    def stands_for(cls, dense: nn.Module) -> bool:
        """Whether this class can replace a dense layer: an `nn.Conv2d` with one group."""
        return is_plain_convolution(dense)

    def empty_dense(self) -> nn.Module:
        """See `CompressedLayer.empty_dense`."""
        return nn.Conv2d(self.in_channels, self.out_channels, **geometry_of(self))

    @classmethod
    def _geometry(cls, dense: nn.Module) -> dict[str, Any]:
        return geometry_of(dense)

    @classmethod
    def _inputs(cls, columns: int, **geometry: Any) -> int:
        size = geometry["kernel_size"]
        return columns // (size * size if isinstance(size, int) else math.prod(size))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to images of shape (batch, in, height, width) or (in, height, width)."""
        if input.dim() == 3:
            return self.forward(input[None])[0]
        x = input
        if not self._pads_inside():
            x = padded(self, x)
        return super().forward(x)

    def _compiled(self, x: Tensor, handle: int) -> Tensor:
        return self.unpacked_forward(x, self.weight, self.bias)

    def _pads_inside(self) -> bool:
        """Whether torch's `conv2d` can pad the images: with zeros, equally on opposite sides."""
        left, right, above, below = edges(self)
        return self.padding_mode == "zeros" and (left, above) == (right, below)

    def _options(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding and dilation for `conv2d`; padding is 0 if `forward` pads the images."""
        left, _, above, _ = edges(self) if self._pads_inside() else [0, 0, 0, 0]
        return self.stride, (above, left), self.dilation

    def _kernel(self, matrix: Tensor) -> Tensor:
        return matrix.unflatten(1, (self.in_channels, *self.kernel_size))

    def _act(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv2d(x, self._kernel(matrix), bias, *self._options())

    def _act_noise(self, x: Tensor) -> Tensor:
        return self._act(x, self.noise.dense(x.dtype, scratch=True))

    def _gradient(self, gradient: Tensor, matrix: Tensor, like: torch.Size) -> Tensor:
        return conv2d_input(like, self._kernel(matrix), gradient, *self._options())

    def _signal(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.rank:  # torch has no convolution to no channel
            weight = functional.pad(weight, (0, 0, 0, 1))
        left, right = split_factors(weight.to(x.dtype), self.in_features)
        inner = self._act(x, right)
        return functional.conv2d(inner, left[:, :, None, None], cast(bias, x.dtype))

    def _positions(self, x: Tensor) -> int:
        return len(x) * math.prod(x.shape[2:]) // math.prod(self.stride)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        sizes = f"{self.in_channels}, {self.out_channels}, rank={self.rank}"
        geometry = ", ".join(f"{name}={value!r}" for name, value in geometry_of(self).items())
        return f"{sizes}, {geometry}, bias={self.bias is not None}"


def geometry_of(layer: nn.Module) -> dict[str, Any]:
    """The arguments of a convolution except its channels; empty for a layer of another kind."""
    if not isinstance(layer, nn.Conv2d | SpikedConv2d):
        return {}
    return {name: getattr(layer, name) for name in GEOMETRY}


def edges(conv: Any) -> list[int]:
    """Padding of a convolution: numbers of columns left and right, and of rows above and below."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(conv.padding, str):
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
    return [side for padding in reversed(conv.padding) for side in (padding, padding)]


def padded(conv: Any, images: Tensor) -> Tensor:
    """Images of shape (..., height, width) with the padding that a convolution adds to them."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return functional.pad(images, edges(conv), mode)
