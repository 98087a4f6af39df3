"""Merges signal and noise, the two parts of a weight, or multiplies inputs by the noise alone.

`SpikedLinear` explains the two parts. The product with the noise can be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.stores.noise_store import NoiseStore
from hf_rmt.nn.transforms import is_differentiating


class CompiledNoiseProduct(torch.autograd.Function):
    """Multiplies inputs x by the noise part of a weight.

    `SpikedLinear` explains the noise part. To save memory, it is unpacked again in `backward`.
    torch.compile can trace this function, because it has no `jvp` (forward-mode derivative).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: Any) -> Tensor:
        """The noise part of the weight of a `SpikedLinear`, applied to x."""
        return layer._act_noise(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        """Keep the layer for `backward`, but not the unpacked noise part of its weight."""
        ctx.layer, ctx.shape = inputs[1], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to the input x, from the gradient of the output."""
        return noise_gradient(gradient, ctx.layer, ctx.shape), None


class NoiseProduct(CompiledNoiseProduct):
    """Multiplies inputs x by the noise part of a weight, with derivatives of any order.

    Reverse mode and forward mode both work. `SpikedLinear` explains the noise part of a weight.
    """

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        """The forward-mode derivative: the weight's noise part, applied to a tangent of x."""
        return NoiseProduct.apply(tangent, ctx.layer)


@dataclass(frozen=True)
class Transposed:
    """The transposed noise part of the weight of a `SpikedLinear`, for inputs x of one shape.

    One object holds layer and shape, because the `vmap` rule of `NoiseGradient` needs one object.
    """

    layer: Any
    shape: torch.Size

    def __call__(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to the input x, from the gradient of the output."""
        noise = self.layer.noise.dense(gradient.dtype, scratch=True)
        return self.layer._gradient(gradient, noise, self.shape)


class NoiseGradient(torch.autograd.Function):
    """Multiplies an output's gradient by the transposed noise part of a weight.

    `SpikedLinear` explains the noise part. The backward pass of this function unpacks it again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, transposed: Transposed) -> Tensor:
        """The gradient with respect to the input x, from the gradient of the output."""
        return transposed(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Transposed], output: Tensor) -> None:
        """Keep the layer for `backward`, but not the unpacked noise part of its weight."""
        ctx.transposed = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The weight's noise part, not transposed, applied to the gradient."""
        return NoiseProduct.apply(gradient, ctx.transposed.layer), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        """The forward-mode derivative: the transposed noise, applied to a tangent of `gradient`."""
        return NoiseGradient.apply(tangent, ctx.transposed)


def noise_product(x: Tensor, layer: Any) -> Tensor:
    """Apply the noise part of a `SpikedLinear`'s weight to x; the result can be differentiated."""
    if torch.compiler.is_compiling():
        return CompiledNoiseProduct.apply(x, layer)
    return NoiseProduct.apply(x, layer)


def noise_gradient(gradient: Tensor, layer: Any, shape: torch.Size) -> Tensor:
    """The gradient with respect to the input x of `noise_product`, from that of its output.

    Args:
        gradient: Gradient with respect to the output.
        layer: A `SpikedLinear`.
        shape: Shape of x.

    Returns:
        The gradient, of the given shape; it can be differentiated again if gradients are enabled.
    """
    transposed = Transposed(layer, shape)
    if is_differentiating() and not torch.compiler.is_compiling():  # a second one may be needed
        return NoiseGradient.apply(gradient, transposed)
    return transposed(gradient)  # apply itself takes 50 microseconds


def cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias converted to a dtype; None if there is no bias."""
    return bias if bias is None or bias.dtype == dtype else bias.to(dtype)


def split_factors(weight: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """Split `weight` of a `SpikedLinear` into views (left, right); `left @ right` is its signal."""
    return weight[:, in_features:].T, weight[:, :in_features]


def merged(weight: Tensor, noise: NoiseStore, in_features: int, *, scratch: bool = False) -> Tensor:
    """Signal plus noise, the dense weight of shape (out, in), in the dtype of `weight`.

    `weight` holds the factors of the signal, as in `SpikedLinear`. With `scratch`, the result may
    be overwritten later; see `NoiseStore.dense`.
    """
    left, right = split_factors(weight, in_features)
    if noise.kind == "drop":
        return left @ right
    dense = noise.dense(weight.dtype, scratch=scratch)
    if len(right) == 0:
        return dense
    fresh = noise.kind != "keep" and not is_differentiating()
    return dense.addmm_(left, right) if fresh else torch.addmm(dense, left, right)
