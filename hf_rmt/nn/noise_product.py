"""Signal and noise of a layer as one matrix; the noise times an input, with derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.stores.noise_store import NoiseStore
from hf_rmt.nn.transforms import is_differentiating


class CompiledNoiseProduct(torch.autograd.Function):
    """The noise times x; the noise is unpacked again for the gradient and not kept.

    torch.compile can trace it; it cannot trace a function with a `jvp`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: Any) -> Tensor:
        """The noise of a `SpikedLinear` acting on x."""
        return layer._act_noise(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        """Keep the layer, and not its noise."""
        ctx.layer, ctx.shape = inputs[1], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        return noise_gradient(gradient, ctx.layer, ctx.shape), None


class NoiseProduct(CompiledNoiseProduct):
    """The noise acting on x, with derivatives of any order and mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        """The derivative along a tangent of x: the noise acts on it."""
        return NoiseProduct.apply(tangent, ctx.layer)


@dataclass(frozen=True)
class Transposed:
    """The transposed noise of a layer, for inputs of a shape. One object, as vmap needs it."""

    layer: Any
    shape: torch.Size

    def __call__(self, gradient: Tensor) -> Tensor:
        """The gradient of the inputs."""
        noise = self.layer.noise.dense(gradient.dtype, scratch=True)
        return self.layer._gradient(gradient, noise, self.shape)


class NoiseGradient(torch.autograd.Function):
    """The transposed noise acting on a gradient; its own derivatives unpack the noise again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, transposed: Transposed) -> Tensor:
        """The gradient of x."""
        return transposed(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Transposed], output: Tensor) -> None:
        """Keep the layer, and not its noise."""
        ctx.transposed = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The derivative of the transposed noise is the noise itself."""
        return NoiseProduct.apply(gradient, ctx.transposed.layer), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        """The derivative along a tangent of the gradient."""
        return NoiseGradient.apply(tangent, ctx.transposed)


def noise_product(x: Tensor, layer: Any) -> Tensor:
    """The noise of a `SpikedLinear` times x, with derivatives."""
    if torch.compiler.is_compiling():
        return CompiledNoiseProduct.apply(x, layer)
    return NoiseProduct.apply(x, layer)


def noise_gradient(gradient: Tensor, layer: Any, shape: torch.Size) -> Tensor:
    """The gradient of x, given the gradient of the noise times x.

    Args:
        gradient: Of the outputs.
        layer: A `SpikedLinear`.
        shape: Of x.

    Returns:
        The gradient, of the given shape; it can be differentiated again if gradients are enabled.
    """
    transposed = Transposed(layer, shape)
    if is_differentiating() and not torch.compiler.is_compiling():  # a second one may be needed
        return NoiseGradient.apply(gradient, transposed)
    return transposed(gradient)  # apply itself takes 50 microseconds


def cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias in a dtype, if there is one."""
    return None if bias is None else bias.to(dtype)


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
    fresh = noise.kind != "keep" and not is_differentiating()
    return dense.addmm_(left, right) if fresh else torch.addmm(dense, left, right)
