"""The layout `packed`, a form of a weight in memory: packed as in a saved file.

Every forward unpacks the weight.
"""

from __future__ import annotations

from torch import Tensor

from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layouts.base import Layout, register, signal_bytes, store_bytes


@register
class PackedLayout(Layout):
    """The weight lies in memory packed, as in a saved file, and the layer itself unpacks it on use.

    Every compressed layer can have this layout.
    """

    name = "packed"

    @classmethod
    def refusal(cls, layer: SpikedLinear, *, activations: str = "int8") -> str:
        """An empty string: every layer can have this layout (form of its weight in memory)."""
        return ""

    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output for x; the layer itself unpacks its noise, see `SpikedLinear`."""
        return layer.unpacked_forward(x, weight, bias)

    def prepare(self, layer: SpikedLinear) -> None:
        """Do nothing, because this layout (form of the weight in memory) keeps no tensors."""

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """See `Layout.noise_product`; each call decodes the noise again."""
        return layer._act_noise(x)

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Number of bytes of the noise (codes and scales), the factors of the signal, and the bias.

        `SpikedLinear` and `NoiseStore` explain these tensors.
        """
        return signal_bytes(layer) + store_bytes(layer)
