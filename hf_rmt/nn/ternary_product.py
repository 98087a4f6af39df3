"""Multiplies inputs by the weight of a `TernaryLinear`, with integers if this is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_rmt.nn.int8_matmul import integer_linear, runs_on_integers
from hf_rmt.nn.layers.compressed_layer import autocast_input
from hf_rmt.nn.stores.export_ops import is_exporting, plain_signs
from hf_rmt.nn.transforms import are_wrapped, is_differentiating, is_transformed

FEW_TOKENS = 64
"""For a packed weight and up to this many tokens (rows of the input), integer products are faster
than float products."""


def ternary_linear(x: Tensor, layer: Any) -> Tensor:
    """The outputs x (s T)' + bias of a `TernaryLinear`, where ' is the transpose.

    The matrix T has the entries -1, 0 and 1, and s is the scale.
    """
    x = autocast_input(x)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    if is_exporting() or (is_transformed() and are_wrapped((layer.weight, layer.scale))):
        signs = plain_signs(layer.weight, (layer.out_features, layer.in_features))
        return functional.linear(x, signs.to(x.dtype) * layer.scale.to(x.dtype)[:, None], bias)
    if torch.compiler.is_compiling() or not is_differentiating():
        return _ternary_product(x, layer, bias)
    product = _TernaryProduct.apply(x, layer)
    return product if bias is None else product + bias


def _ternary_product(x: Tensor, layer: Any, bias: Tensor | None = None) -> Tensor:
    shape = layer.out_features, layer.in_features
    fast, kept = layer._layout == "int8", layer._layout != "packed"
    tokens = x.numel() // max(1, layer.in_features)
    few = 0 < tokens <= FEW_TOKENS and not kept
    rows = x.shape[-1:] == shape[1:] and not x.is_nested
    if rows and (fast or few) and runs_on_integers(x, shape):
        signs = layer._kept(torch.int8) if fast else layer._signs()
        digits = 3 if x.dtype == torch.float32 and not fast else 2
        product = x.reshape(tokens, layer.in_features)
        product = integer_linear(product, signs, layer.scale, bias, digits=digits)
        return product.view(*x.shape[:-1], layer.out_features)
    weight = layer._kept(layer.scale.dtype).to(x.dtype) if kept else layer.dense(x.dtype)
    return functional.linear(x, weight, bias)


class _TernaryProduct(torch.autograd.Function):
    """The product of x and the transposed weight of a `TernaryLinear`, with its derivatives.

    To save memory, the unpacked weight is not kept for the backward pass, which unpacks it again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: Any) -> Tensor:
        return _ternary_product(x, layer)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.layer = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dense(gradient.dtype), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _TernaryProduct.apply(tangent, ctx.layer)
