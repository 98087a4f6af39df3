"""The codes as on disk, unpacked in every forward."""

from __future__ import annotations

from torch import Tensor

from hf_rmt.nn.layouts.base import Layout, register, signal_bytes, store_bytes
from hf_rmt.nn.spiked import SpikedLinear


@register
class PackedLayout(Layout):
    """The layer's own forward; every compressed layer can have this layout."""

    name = "packed"

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """Every layer can have it."""
        return ""

    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The layer's own forward."""
        return layer.unpacked_forward(x, weight, bias)

    def prepare(self, layer: SpikedLinear) -> None:
        """Nothing is kept."""

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """The noise acting on x, decoded for it."""
        return layer._act_noise(x)

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes of codes, scales, factors and bias."""
        return signal_bytes(layer) + store_bytes(layer)
