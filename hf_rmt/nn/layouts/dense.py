"""Signal and noise merged into one matrix of the model's dtype: as fast as the dense layer."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.nn.layouts.base import (
    Layout,
    register,
    signal_bytes,
    signal_identity,
    store_bytes,
)
from hf_rmt.nn.spiked import SpikedLinear


@register
class DenseLayout(Layout):
    """The merged matrix in memory, with the codes of the noise on disk.

    If the signal gets a gradient, the matrix holds the noise alone, and the signal is computed
    separately. Otherwise both are merged, and merged again after each change of the signal.
    """

    name = "dense"

    def forward(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """One product with the merged matrix; in training, one each for signal and noise."""
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        if torch.is_grad_enabled() and layer.weight.requires_grad:
            signal = layer._signal(x, layer.weight.to(x.dtype), bias)
            return signal + layer._act(x, self._noise(layer, x.dtype))
        return layer._act(x, self._merged(layer, x.dtype), bias)

    def prepare(self, layer: SpikedLinear) -> None:
        """Merge now, or unpack the noise of a layer in training."""
        make = self._noise if layer.training and layer.weight.requires_grad else self._merged
        make(layer, layer.weight.dtype)

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """The noise acting on x, from a matrix that is kept."""
        return layer._act(x, self._noise(layer, x.dtype))

    def _noise(self, layer: SpikedLinear, dtype: torch.dtype) -> Tensor:
        return self.keep(layer, ("noise", dtype), lambda: layer.noise.dense(dtype))

    def _merged(self, layer: SpikedLinear, dtype: torch.dtype) -> Tensor:
        key = "merged", dtype, *signal_identity(layer, layer.weight)
        return self.keep(layer, key, lambda: merged(layer, dtype))

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes of the matrix, the factors and the bias."""
        matrix = layer.out_features * layer.in_features * layer.weight.element_size()
        return matrix + signal_bytes(layer) + store_bytes(layer, without_codes=True)


def merged(layer: SpikedLinear, dtype: torch.dtype) -> Tensor:
    """Signal plus noise, summed in float32 or better and rounded once."""
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    left, right = (factor.detach().to(wide) for factor in layer.factors())
    noise = layer.noise.dense(wide)
    if not layer.rank:
        return noise.to(dtype)
    fresh = layer.noise.kind != "keep"
    result = noise.addmm_(left, right) if fresh else torch.addmm(noise, left, right)
    return result.to(dtype)
