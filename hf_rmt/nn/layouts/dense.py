"""The layout `dense`, a form of a weight in memory: one matrix of the model's dtype.

The matrix is signal plus noise (see `SpikedLinear`), which is the weight of a dense layer. It lies
in memory row by row, as in `nn.Linear`.

oneDNN could bring it into another order in advance. On a CPU with AVX-512, with one thread and
torch 2.13, products of 2 rows and more then take 0.53 to 1.0 of the time. But one row can take 1.5
times as long. And the first product with each new number of rows takes 1.7 ms longer, so texts of
many lengths would be slower at first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layouts.base import (
    Layout,
    register,
    signal_bytes,
    store_bytes,
)
from hf_rmt.nn.noise_product import cast, split_factors


@register
class DenseLayout(Layout):
    """One matrix, signal plus noise, lies in memory; the stored form of the noise lies on disk.

    Signal and noise are the parts of the weight of a `SpikedLinear`. The matrix is made again after
    each change of the signal. If the signal needs a gradient, or if the factors of the signal are
    given for one call only, the matrix holds the noise alone. The product with the signal is then
    computed separately.
    """

    name = "dense"
    is_transformable = False  # what is made of tensors of a transform must not outlive it
    _parametrized = False
    """Whether a parametrization, such as an adapter of PEFT, has ever computed the layer's weight.
    From then on the matrix in memory holds the noise alone, and the signal is read in each call.
    The reason: PEFT merges an adapter by writes that do not change the version of the weight."""

    def forward(
        self, layer: SpikedLinear, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output of the layer, from one matrix that holds signal plus noise.

        Signal and noise are the parts of the weight of a `SpikedLinear`. If the matrix holds the
        noise alone, the product with the signal is added.
        """
        if self._keeps_noise(layer, weight, torch.is_grad_enabled()):
            return layer._signal(x, weight, bias) + self.noise_product(layer, x)
        matrix = self.keep(layer, merged, x.dtype, weight)
        return layer._act(x, matrix, cast(bias, x.dtype))

    def prepare(self, layer: SpikedLinear) -> None:
        """Make the matrix now: signal plus noise, or the noise alone; see `_keeps_noise`."""
        weight = layer.weight
        if self._keeps_noise(layer, weight, layer.training):
            self.keep(layer, unpacked, weight.dtype)
        else:
            self.keep(layer, merged, weight.dtype, weight)

    def noise_product(self, layer: SpikedLinear, x: Tensor) -> Tensor:
        """See `Layout.noise_product`; the unpacked noise stays in memory."""
        return layer._act(x, self.keep(layer, unpacked, x.dtype))

    def _keeps_noise(self, layer: SpikedLinear, weight: Tensor, training: bool) -> bool:
        """Whether the matrix in memory holds only the noise: the weight minus its low-rank signal.

        Otherwise it holds signal plus noise. It holds only the noise in three cases: the signal is
        being trained; the next call may have another signal; or the layer may not notice that the
        signal was changed in place. The argument `weight` holds the factors of the signal. If it is
        no `Parameter`, it is valid for one call only: a parametrization has computed it, or
        `functional_call` has replaced it.
        """
        passing = type(weight) is Tensor
        if passing and "weight" not in layer._parameters:
            self._parametrized = True
        trains = training and weight.requires_grad
        return passing or trains or self._parametrized or weight.is_inference()

    @staticmethod
    def estimate(layer: SpikedLinear) -> int:
        """Bytes of the matrix, the factors of the signal, the bias, and the scales of the noise.

        `SpikedLinear` and `NoiseStore` explain these tensors.
        """
        matrix = layer.out_features * layer.in_features * layer.weight.element_size()
        return matrix + signal_bytes(layer) + store_bytes(layer, without_codes=True)


def unpacked(layer: SpikedLinear, dtype: torch.dtype) -> Tensor:
    """The noise of a `SpikedLinear` as one matrix of the given dtype, shape (out, in)."""
    return layer.noise.dense(dtype)


def merged(layer: SpikedLinear, dtype: torch.dtype, weight: Tensor) -> Tensor:
    """The weight of a `SpikedLinear` as one matrix, shape (out, in): signal plus noise.

    `weight` holds the low-rank factors of the signal. The sum is computed in float32 or wider, and
    rounded once to `dtype`.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    left, right = split_factors(weight.detach().to(wide), layer.in_features)
    noise = layer.noise.dense(wide)
    if not layer.rank:
        return noise.to(dtype)
    fresh = layer.noise.kind != "keep"
    result = noise.addmm_(left, right) if fresh else torch.addmm(noise, left, right)
    return result.to(dtype)
