"""Quantisation-aware training of ternary weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_rmt.nn.stores.ternary_packing import check_options, ternarize
from hf_rmt.nn.ternary import TernaryLinear


class LatentTernaryLinear(nn.Linear):
    """A linear layer that computes with the ternary matrix nearest to its weight.

    The gradient passes straight through to the latent `weight`, d s T / d weight = 1. Its state
    dict is that of a plain linear layer. Train it, then `freeze` it.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.
        sparsity: Share of zeros, in [0, 1]; None for that of least squared error.
        scale: One scale a `row`, or one for the `tensor`.
        device: Of the parameters.
        dtype: Of the parameters; float32 resolves the small steps of training.

    Raises:
        ValueError: If sparsity or scale is out of range.

    Examples:
        >>> latent = LatentTernaryLinear.from_linear(nn.Linear(6, 2))
        >>> latent(torch.ones(1, 6)).sum().backward()
        >>> latent.weight.grad.unique(), type(latent.freeze()).__name__
        (tensor([1.]), 'TernaryLinear')
    """

    sparsity: float | None
    scale: str
    step: nn.Module | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float | None = None,
        scale: str = "row",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_options(sparsity, scale)
        self.sparsity, self.scale = sparsity, scale
        self.register_module("step", None)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, sparsity: float | None = None, scale: str = "row"
    ) -> LatentTernaryLinear:
        """The layer with latent ternary weights in place of a linear one; both share parameters.

        Args:
            linear: The layer.
            sparsity: Share of zeros, in [0, 1]; None for that of least squared error.
            scale: One scale a `row`, or one for the `tensor`.
        """
        latent = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            sparsity=sparsity,
            scale=scale,
            device="meta",
        )
        latent.weight, latent.bias = linear.weight, linear.bias
        return latent.train(linear.training)

    @classmethod
    def from_ternary(cls, layer: TernaryLinear) -> LatentTernaryLinear:
        """A trainable layer with the same outputs.

        Args:
            layer: A ternary layer; it is not changed. The bias is shared, and so is its step.

        Returns:
            The layer; its latent weight is s T, in float32 at least. If all rows have the same
            number of zeros, it stays fixed. Otherwise each row takes the sparsity of least error at
            each step.
        """
        zeros = (layer.dense() == 0).sum(1)
        sparsity = float(zeros[0]) / layer.in_features if (zeros == zeros[0]).all() else None
        linear = layer.to_linear()
        wide = torch.promote_types(layer.scale.dtype, torch.float32)
        linear.weight = nn.Parameter(linear.weight.detach().to(wide))
        scale = "row" if len(layer.scale) == layer.out_features else "tensor"
        latent = cls.from_linear(linear, sparsity=sparsity, scale=scale)
        latent.step = layer.step
        return latent

    def forward(self, input: Tensor) -> Tensor:
        """Apply the ternary layer to an input of shape (..., in); the result has its dtype."""
        signs, scales = ternarize(self.weight.detach(), sparsity=self.sparsity, scale=self.scale)
        ternary = signs * scales[:, None]
        # A zero that carries the gradient, not weight + (ternary - weight), which would round.
        weight = ternary + (self.weight - self.weight.detach())
        bias = None if self.bias is None else self.bias.to(input.dtype)
        result = functional.linear(input, weight.to(input.dtype), bias)
        return result if self.step is None else self.step(result)

    def freeze(self, *, layout: str = "packed") -> TernaryLinear:
        """The packed layer of equal outputs; the bias is shared, and so is a step.

        Args:
            layout: As in `TernaryLinear`.
        """
        frozen = TernaryLinear.from_linear(
            self, sparsity=self.sparsity, scale=self.scale, layout=layout
        )
        frozen.step = self.step
        return frozen

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{super().extra_repr()}, sparsity={self.sparsity}, scale={self.scale!r}"
