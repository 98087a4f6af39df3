"""Layouts in compiled programs: operators that torch.compile calls without tracing into them.

A layout is the form of a weight in memory (see `Layout`). A layout checks whether tensors changed,
and keeps its own tensors outside of the compiled graph. So the operators get only the number
(`handle`) of a layer, and run the code of its layout without compilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from hf_rmt.nn.layouts.base import LAYOUTS, Layout, layer_of


def _layout(layer: Any) -> Layout:
    """The `Layout` of a layer: the object that holds its weight in memory in some form.

    If another thread has just removed the layout, the result is a new layout of the kind
    `packed`, which works for every layer.
    """
    layout: Layout | None = layer.layout_object
    return LAYOUTS["packed"](layer) if layout is None else layout


@library.custom_op("hf_rmt::layout_linear", mutates_args=())
def layout_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: int, outputs: int
) -> Tensor:
    """The output of the layer with the number `handle` for the input x, without gradients.

    `weight` holds the low-rank factors of the signal; the layer itself holds the noise (see
    `SpikedLinear`). The result has shape (..., outputs).
    """
    layer: Any = layer_of(handle)
    with torch.no_grad():
        return _layout(layer).forward(layer, x, weight, bias).clone()


@layout_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, handle: int, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@library.custom_op("hf_rmt::layout_noise", mutates_args=())
def layout_noise(x: Tensor, handle: int, outputs: int) -> Tensor:
    """The noise part of the weight of a `SpikedLinear`, applied to x of shape (..., in).

    `handle` is the number of the layer. The result has shape (..., outputs).
    """
    layer: Any = layer_of(handle)
    with torch.no_grad():
        return _layout(layer).noise_product(layer, x).clone()


@layout_noise.register_fake
def _(x: Tensor, handle: int, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@library.custom_op("hf_rmt::layout_noise_gradient", mutates_args=())
def layout_noise_gradient(gradient: Tensor, handle: int, inputs: int) -> Tensor:
    """The gradient with respect to x, from the gradient of the output of `layout_noise`.

    `handle` is the number of the layer, and `inputs` is the width of x.
    """
    return gradient @ layer_of(handle).noise.dense(gradient.dtype)


@layout_noise_gradient.register_fake
def _(gradient: Tensor, handle: int, inputs: int) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], inputs)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.handle, ctx.inputs = inputs[1], inputs[0].shape[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return layout_noise_gradient(gradient, ctx.handle, ctx.inputs), None, None


layout_noise.register_autograd(_backward, setup_context=_setup)
