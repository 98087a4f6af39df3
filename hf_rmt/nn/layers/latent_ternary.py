"""Quantisation-aware training of ternary weights, which are -1, 0 or 1 times a scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_rmt.nn.layers.ternary import TernaryLinear
from hf_rmt.nn.stores.ternary_packing import check_options, ternarize


class LatentTernaryLinear(nn.Linear):
    """A linear layer that computes with the ternary matrix nearest to its weight.

    The ternary matrix is s T, where s is a scale and the entries of T are -1, 0 or 1. The trained
    `weight` in full precision is called the latent weight. Training applies the gradient of s T to
    the latent weight, as if d(s T) / d weight were 1. The state dict is that of a plain linear
    layer. Train the layer, then call `freeze`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.
        sparsity: Share of zeros in T, in [0, 1]; None for the share that brings s T closest to the
            weight.
        scale: `row` for one scale per row, or `tensor` for a single scale.
        device: Device of the parameters.
        dtype: Dtype of the parameters; float32 is precise enough for small updates.

    Raises:
        ValueError: If sparsity lies outside of [0, 1] or scale is unknown.

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
        """A layer that trains the parameters of a linear layer and computes with ternary weights.

        A ternary weight is -1, 0 or 1 times a scale. The parameters are shared, not copied.

        Args:
            linear: The linear layer.
            sparsity: Share of zeros, in [0, 1]; None for the share that brings the ternary weight
                closest to the trained one.
            scale: `row` for one scale per row, or `tensor` for a single scale.
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
        """A trainable layer with the same outputs as a ternary layer.

        Args:
            layer: A ternary layer with the weight s T, where s is a scale and the entries of T are
                -1, 0 or 1. The layer is not changed. Both layers share the bias and `step`, a
                step function that follows (see `StepBefore`) or None.

        Returns:
            The layer, which trains the weight s T, in float32 or wider. If all rows of T have the
            same number of zeros, this number stays fixed in training. Otherwise each forward pass
            chooses the share of zeros that brings the ternary weight closest to the trained one.
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
        """Apply the layer, with the ternary matrix nearest to its weight, to an input (..., in).

        The entries of a ternary matrix are -1, 0 or 1, times a scale. The result has the dtype of
        the input; under autocast, it has the dtype of autocast.
        """
        signs, scales = ternarize(self.weight.detach(), sparsity=self.sparsity, scale=self.scale)
        ternary = signs * scales[:, None]
        # A zero that carries the gradient, not weight + (ternary - weight), which would round.
        weight = ternary + (self.weight - self.weight.detach())
        bias = None if self.bias is None else self.bias.to(input.dtype)
        result = functional.linear(input, weight.to(input.dtype), bias)
        return result if self.step is None else self.step(result)

    def freeze(self, *, layout: str = "packed") -> TernaryLinear:
        """A `TernaryLinear` with frozen, packed weights and the same outputs as this layer.

        Both layers share the bias and `step`, a step function that follows (see `StepBefore`) or
        None.

        Args:
            layout: How the weight lies in memory, as in `TernaryLinear`.
        """
        frozen = TernaryLinear.from_linear(
            self, sparsity=self.sparsity, scale=self.scale, layout=layout
        )
        frozen.step = self.step
        return frozen

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{super().extra_repr()}, sparsity={self.sparsity}, scale={self.scale!r}"
