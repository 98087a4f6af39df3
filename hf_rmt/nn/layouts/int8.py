"""The layout `int8`, a form of a weight in memory: the noise is a matrix of integers.

The processor computes integer products with this matrix. The noise is the weight without its
low-rank signal; see `SpikedLinear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.kept import Kept
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.spiked_conv import SpikedConv2d
from hf_rmt.nn.layouts.base import (
    Layout,
    LayoutProduct,
    exact,
    has_rows,
    register,
    signal_bytes,
    signal_state,
    store_bytes,
)
from hf_rmt.nn.layouts.integer_weight import IntegerWeight, why_no_integers
from hf_rmt.nn.noise_product import split_factors
from hf_rmt.nn.transforms import is_differentiating


@register
class Int8Layout(Layout):
    """y = signal(x) + integers(x): the signal in floating point, the noise in integers.

    Signal and noise are the parts of the weight; see `SpikedLinear`.

    For the noise, the inputs are rounded, each row (token) with a scale of its own. With
    `activations="int8"` a rotation first spreads outliers over the channels, and the rotated inputs
    are rounded to 8 bits. With `activations="int16"` the inputs are rounded to two digits of 8
    bits, which is nearly exact. For the signal, the inputs are not rounded.
    """

    name = "int8"

    def __init__(self, layer: SpikedLinear, *, activations: str = "int8") -> None:
        super().__init__(layer, activations=activations)
        self._made = Kept()

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """Why a layer cannot have this layout (form of its weight in memory); empty if it can.

        The layout is impossible for a convolution, for a layer without noise, and on a device that
        has no integer product for the layer's number of inputs.
        """
        if isinstance(layer, SpikedConv2d):
            return "torch has no integer convolution with a scale for each row"
        reason = super().refusal(layer, activations=activations)
        return reason or why_no_integers(layer.weight.device, layer.in_features)

    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output for x: signal(x) in floating point plus noise(x), an integer product.

        Signal and noise are the parts of the weight; see `SpikedLinear`.
        """
        if not has_rows(layer, x):
            return layer.unpacked_forward(x, weight, bias)
        if not is_differentiating():
            return self._product(layer, x, self._signal(layer, weight, bias))
        return layer._signal(x, weight, bias) + LayoutProduct.apply(x, layer, self)

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """See `Layout.noise_product`; here it is an integer product."""
        return self._product(layer, x, (None, None))

    def _product(self, layer: SpikedLinear, x: Tensor, signal: tuple[Any, Any]) -> Tensor:
        integers, (factors, bias) = self._integers(layer), signal
        flat = x.dim() == 2
        rows = x if flat else x.reshape(-1, layer.in_features)
        if torch.is_autocast_enabled(x.device.type):
            with exact(x.device):  # entering it takes 4 us
                result = integers.product(rows, factors, bias)
        else:
            result = integers.product(rows, factors, bias)
        if x.dtype != torch.float32:
            result = result.to(x.dtype)
        return result if flat else result.view(*x.shape[:-1], layer.out_features)

    def _signal(self, layer: SpikedLinear, weight: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
        """The factors of the low-rank signal and the bias, as float32: ((first, second), bias).

        The signal is the part of the weight that maps x to `x @ first @ second`. The pair of
        factors is None for a layer without a signal. The tensors are kept until the weight or the
        bias changes, which saves a tenth of the time of a small layer. For a float32 layer they are
        views of its parameters.
        """
        parts = [part for part in (weight, bias) if part is not None]
        key = signal_state(layer, parts)
        made: tuple[Any, Any] | None = self._made.get(key)
        if made is None:
            left, right = split_factors(weight.detach().to(torch.float32), layer.in_features)
            shift = None if bias is None else bias.detach().to(torch.float32)
            made = (right.T, left.T) if layer.rank else None, shift
            self._made.put(key, made, parts)
        return made

    def reset(self) -> None:
        """Forget the tensors that this layout made from those of the layer; see `Layout.reset`."""
        super().reset()
        self._made.reset()

    def prepare(self, layer: SpikedLinear) -> None:
        """Make the integer matrix of the noise (see `SpikedLinear`) now, before the first use."""
        self._integers(layer)

    def _integers(self, layer: SpikedLinear) -> IntegerWeight:
        digits = 2 if self.activations == "int16" else 1
        return self.keep(layer, integer_weight, digits)

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes of the layer: integer matrix with row scales and row sums, signal, bias, scales.

        `SpikedLinear` explains the signal. The last scales are those of the `NoiseStore`.
        """
        integers = layer.out_features * (layer.in_features + 12)
        return integers + signal_bytes(layer) + store_bytes(layer, without_codes=True)


def integer_weight(layer: SpikedLinear, digits: int) -> IntegerWeight:
    """The noise of a `SpikedLinear` as an `IntegerWeight`, which explains `digits` (1 or 2)."""
    return IntegerWeight(layer.noise.dense(torch.float32), digits=digits)
