"""Multiplies a few inputs by packed noise, with machine code that Numba compiles.

Noise is a weight minus its low-rank signal; `NoiseStore` explains how it is packed. To unpack a
weight means to write it to memory and to read it again. If there are few inputs, this takes longer
than the product. Here the weights of two rows are unpacked into the processor's first cache, and
are multiplied there with all the inputs.
"""

# Numba's decorator has no types, and the functions that it compiles need none.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, library, nn

from hf_rmt.nn.stores.codebooks import CODEBOOKS, RUN, Codebook
from hf_rmt.nn.stores.machine_code import (
    callable_in_loops,
    can_read,
    compiled,
    largest,
    points,
    scales,
    shared_out,
)

FEW = {torch.float32: 64, torch.bfloat16: 16, torch.float16: 16}
"""Largest number of inputs (rows of x), by dtype, for which the compiled product of this module is
used. With more inputs, it may be faster to unpack all the weights and to use the processor's own
matrix product, above all in bfloat16. The numbers are fixed, not measured, so that a model gives
the same bits in each process."""
TOGETHER = 4
"""Number of inputs (rows of x) that the inner loop multiplies by two weights while these weights
are in registers."""
REORDERED = {"reassoc", "contract", "nsz"}
"""What the compiler may do with sums, such as change their order, to compute them with vector
instructions. The names are those of LLVM."""
library.define(
    "hf_rmt::noise_product",
    "(Tensor x, Tensor codes, Tensor fine, Tensor coarse, Tensor base, str kind, int rows)"
    " -> Tensor",
)


def can_multiply(codes: Tensor, x: Tensor, columns: int) -> bool:
    """Whether `multiply` can be called with these codes and inputs.

    The codes must lie on the CPU, and Numba must work. The inputs must be an ordinary tensor on the
    CPU, with few rows; see `FEW`.

    Args:
        codes: Codes of a packed `NoiseStore`.
        x: The inputs, shape (..., columns).
        columns: Number of columns of the weight.
    """
    if not can_read(codes):
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.is_nested or x.device.type != "cpu":
        return False
    if x.shape[-1:] != (columns,) or not 0 < x.numel() <= FEW.get(x.dtype, 0) * columns:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def multiply(
    x: Tensor, codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, kind: str, rows: int
) -> Tensor:
    """Multiply x by a transposed weight that is stored as codes and scales; see `NoiseStore`.

    Args:
        x: Shape (..., in), float32 or narrower.
        codes: Codes of the whole weight.
        fine: Fine codes of the scales, 4 bits for each group of weights with one scale.
        coarse: Coarse codes of the scales, one byte for each `RUN` groups.
        base: The largest scale, as the bits of its float32.
        kind: `int8`, `int4` or `ternary`.
        rows: Number of rows of the weight.

    Returns:
        Shape (..., rows), with the dtype of x. The products are summed in float32, whatever this
        dtype is.
    """
    if torch._C._len_torch_dispatch_stack():  # a mode that traces must see an operator
        return torch.ops.hf_rmt.noise_product(x, codes, fine, coarse, base, kind, rows)
    return _multiply(x, codes, fine, coarse, base, kind, rows)


def _multiply(
    x: Tensor, codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, kind: str, rows: int
) -> Tensor:
    columns = x.shape[-1]
    inputs = x.detach()
    if inputs.dtype != torch.float32 or inputs.dim() != 2 or not inputs.is_contiguous():
        inputs = inputs.reshape(-1, columns).to(torch.float32).contiguous()
    result = torch.empty((len(inputs), rows), dtype=torch.float32, device="cpu")
    stored = codes.numpy(), fine.numpy(), coarse.numpy(), largest(base), scales(), points(kind)
    given, made, kernel = inputs.numpy(), result.numpy(), _kernel(kind)

    def work(first: int, last: int) -> None:
        kernel(*stored, given, made, first, last)

    shared_out(work, rows, rows * columns)
    if x.dtype == torch.float32 and x.dim() == 2:
        return result
    return result.to(x.dtype).view(*x.shape[:-1], rows)


def _shape(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], others[-1])


library.impl("hf_rmt::noise_product", "cpu", _multiply)
library.register_fake("hf_rmt::noise_product", _shape)


@cache
def _kernel(kind: str) -> Callable[..., None]:
    """Compile the loop that multiplies inputs by packed noise (see `NoiseStore`) of this kind."""
    bytes_, floats = np.zeros(0, np.uint8), np.zeros(0, np.float32)
    matrix = np.zeros((0, 0), np.float32)
    example = bytes_, bytes_, bytes_, floats, floats, floats, matrix, matrix, 0, 0
    return compiled(_product(CODEBOOKS[kind]), kind, *example, fastmath=REORDERED)


def _product(book: Codebook) -> Callable[..., None]:
    """Make the loop that multiplies inputs by packed noise; `compiled` turns it into machine code.

    The loop unpacks two rows of the noise at a time; see `NoiseStore`. A row may begin and end in
    the middle of a group, which is some neighbouring weights with one scale.
    """
    group, bytes_, half = book.group, book.group // book.block, RUN // 2
    unpacked = callable_in_loops(_looked_up(book) if book.cubic is None else _computed(book))
    multiplied = callable_in_loops(_multiplied, fastmath=REORDERED)

    def loop(codes, fine, coarse, largest, scales, points, x, out, low, high):
        columns = x.shape[1]
        steps = np.empty(2 * columns // group + 2, np.float32)
        weights = np.empty(len(steps) * group, np.float32)
        for row in range(low, high, 2):
            other = min(row + 1, high - 1)  # the last row may be alone, and is then its own partner
            first, last = row * columns // group, -(-(other + 1) * columns // group)
            for number in range(first, last):
                place = number % RUN
                pair = fine[number // RUN * half + place % half]
                nibble = (pair >> (4 * (place // half))) & 15
                code = (np.intp(coarse[number // RUN]) + nibble) & 255
                steps[number - first] = scales[code] * largest[0]
            unpacked(codes[first * bytes_ : last * bytes_], points, steps, weights)
            here, there = row * columns - first * group, other * columns - first * group
            one, two = weights[here : here + columns], weights[there : there + columns]
            multiplied(one, two, x, out[:, row], out[:, other])

    return loop


def _computed(book: Codebook) -> Callable[..., None]:
    """Make a loop that unpacks weights; it computes the value of each code by a formula.

    The code c stands for d + k d^3, times the scale of its group of weights. Here d = c - 128, and
    k is `cubic` of the `Codebook`.
    """
    group, cubic, middle = book.group, np.float32(book.cubic), np.float32(128)

    def loop(codes, points, steps, weights):
        for place in range(len(codes)):
            level = np.float32(codes[place]) - middle
            weights[place] = level + level * level * level * cubic
        for number in range(len(codes) // group):
            scale = steps[number]
            for part in range(group):
                weights[number * group + part] *= scale

    return loop


def _looked_up(book: Codebook) -> Callable[..., None]:
    """Make a loop that unpacks weights; it looks up the value of each code in a table.

    A code is one byte and stands for one weight or several. The table holds these weights for each
    code. The loop multiplies them by the scale of their group of weights.
    """
    block, bytes_ = book.block, book.group // book.block

    def loop(codes, points, steps, weights):
        for number in range(len(codes) // bytes_):
            scale = steps[number]
            for place in range(number * bytes_, (number + 1) * bytes_):
                code = np.intp(codes[place])
                for part in range(block):
                    weights[place * block + part] = points[code * block + part] * scale

    return loop


def _multiplied(row, other, x, out, out_other):
    """Multiply each input (row of x) by two rows of weights, `row` and `other`.

    The products (one number for each input) go to `out` and `out_other`.
    """
    full = len(x) // TOGETHER * TOGETHER
    for number in range(0, full, TOGETHER):
        x0, x1, x2, x3 = x[number], x[number + 1], x[number + 2], x[number + 3]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
        for place in range(len(row)):
            a, b = row[place], other[place]
            a0, b0 = a0 + a * x0[place], b0 + b * x0[place]
            a1, b1 = a1 + a * x1[place], b1 + b * x1[place]
            a2, b2 = a2 + a * x2[place], b2 + b * x2[place]
            a3, b3 = a3 + a * x3[place], b3 + b * x3[place]
        out[number], out_other[number] = a0, b0
        out[number + 1], out_other[number + 1] = a1, b1
        out[number + 2], out_other[number + 2] = a2, b2
        out[number + 3], out_other[number + 3] = a3, b3
    for number in range(full, len(x)):
        one, a, b = x[number], np.float32(0), np.float32(0)
        for place in range(len(row)):
            a, b = a + row[place] * one[place], b + other[place] * one[place]
        out[number], out_other[number] = a, b
