"""The layout `fused`, a form of a weight in memory for CUDA: the noise stays in codes.

`NoiseStore` explains the noise and its codes. A Triton kernel decodes them while it multiplies.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from torch import Tensor

from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.spiked_conv import SpikedConv2d
from hf_rmt.nn.layouts.base import (
    Layout,
    LayoutProduct,
    has_rows,
    register,
    signal_bytes,
    store_bytes,
)
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from hf_rmt.nn.transforms import is_differentiating

DECODED = ("int8", "int4", "ternary")
"""The formats of stored noise, among `NOISE_KINDS`, that the Triton kernel can decode."""


@register
class FusedLayout(Layout):
    """y = signal(x) + kernel(codes, x): the codes of the noise are never unpacked as a whole.

    Signal and noise are parts of the weight; see `SpikedLinear`. `NoiseStore` explains the codes.
    The kernel is tested in Triton's interpreter and has not run on a GPU yet. So `fastest` and
    `smallest` never choose this layout; ask for it by its name.
    """

    name = "fused"
    by_name_only = True

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """Why a layer cannot have this layout (form of its weight in memory); empty if it can.

        The layout is impossible for a convolution, for a layer that is not on CUDA, for noise (see
        `NoiseStore`) that the kernel cannot decode, and without Triton.
        """
        if isinstance(layer, SpikedConv2d):
            return "its kernel does not support convolutions"
        if layer.noise.kind not in CODEBOOKS:
            return super().refusal(layer) or "its noise is stored unpacked, not in codes"
        if layer.noise.kind not in DECODED:
            return f"its kernel decodes {', '.join(DECODED)}, and the noise is {layer.noise.kind}"
        if find_spec("triton") is None:
            return "Triton is not installed; it comes with CUDA builds of torch"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if layer.weight.device.type not in ("cuda", "meta") and not interpreted:
            return f"its kernel runs on CUDA, and the layer is on {layer.weight.device.type}"
        return ""

    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output of the layer for x, in the dtype of x.

        It is the product with the signal plus the product with the noise. The kernel computes the
        second of them. Signal and noise are the parts of the weight; see `SpikedLinear`.
        """
        if not has_rows(layer, x):
            return layer.unpacked_forward(x, weight, bias)
        signal = layer._signal(x, weight, bias)
        if not is_differentiating():
            return signal.add_(self.noise_product(layer, x))
        return signal + LayoutProduct.apply(x, layer, self)

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """See `Layout.noise_product`; the kernel decodes the noise while it multiplies."""
        from hf_rmt.nn.layouts.fused_kernel import fused_product

        rows = fused_product(x.detach().reshape(-1, layer.in_features), layer.noise)
        return rows.view(*x.shape[:-1], layer.out_features)

    def prepare(self, layer: SpikedLinear) -> None:
        """Do nothing, because this layout (form of the weight in memory) keeps no tensors."""

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Number of bytes of the noise (codes and scales), the factors of the signal, and the bias.

        `SpikedLinear` and `NoiseStore` explain these tensors.
        """
        return signal_bytes(layer) + store_bytes(layer)
