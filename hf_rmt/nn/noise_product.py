"""Signal and noise of a layer as one matrix, and the noise acting on an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.stores.noise_store import NoiseStore


class NoiseProduct(torch.autograd.Function):
    """The noise acting on x, unpacked again for the gradient instead of kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: Any) -> Tensor:
        """The noise of a `SpikedLinear` acting on x."""
        return layer._act(x, layer.noise.dense(x.dtype, scratch=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        """Keep the layer, and not its noise."""
        ctx.layer, ctx.shape = inputs[1], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        noise = ctx.layer.noise.dense(gradient.dtype, scratch=True)
        return ctx.layer._gradient(gradient, noise, ctx.shape), None


def split_factors(weight: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """The factors (left, right) as views of the parameter that holds them."""
    return weight[:, in_features:].T, weight[:, :in_features]


def merged(weight: Tensor, noise: NoiseStore, in_features: int, *, scratch: bool = False) -> Tensor:
    """Signal plus noise, shape (out, in), in the dtype of the factors."""
    left, right = split_factors(weight, in_features)
    if noise.kind == "drop":
        return left @ right
    dense = noise.dense(weight.dtype, scratch=scratch)
    if len(right) == 0:
        return dense
    fresh = noise.kind != "keep" and not torch.is_grad_enabled()
    return dense.addmm_(left, right) if fresh else torch.addmm(dense, left, right)
