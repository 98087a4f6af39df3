"""The layout `packed`: memory holds the codes of the file, and every forward unpacks them."""

from __future__ import annotations

from torch import Tensor

from hf_rmt.nn.layouts.base import Layout, register, signal_bytes, store_bytes
from hf_rmt.nn.spiked import SpikedLinear


@register
class PackedLayout(Layout):
    """The layer computes the forward itself; every compressed layer can have this layout."""

    name = "packed"

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """Always empty, because every layer can have this layout."""
        return ""

    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output of the layer, which unpacks its noise itself."""
        return layer.unpacked_forward(x, weight, bias)

    def prepare(self, layer: SpikedLinear) -> None:
        """Do nothing, because this layout keeps no tensors."""

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """The noise matrix applied to x; each call decodes the noise again."""
        return layer._act_noise(x)

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes of codes, scales, factors and bias."""
        return signal_bytes(layer) + store_bytes(layer)
