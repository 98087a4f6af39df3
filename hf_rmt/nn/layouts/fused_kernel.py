"""A Triton kernel that multiplies with packed noise: it decodes codes in registers, tile by tile.

`NoiseStore` explains the noise and its codes. The kernel needs Triton, which comes with CUDA builds
of torch. If the environment has TRITON_INTERPRET=1 before Triton is imported, the kernel also runs
on the CPU, slowly, for tests.
"""

# The functions of the kernel have no types: Triton compiles them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_rmt.nn.stores.codebooks import CODEBOOKS, CUBIC, RUN, SCALE_STEP, SPIRAL, table

ROWS, OUTPUTS, INPUTS = 16, 64, 64
"""Sizes of the tiles. Each program computes ROWS x OUTPUTS results (rows of x, outputs of the
layer), and each step of its loop reads INPUTS inputs."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernel. The interpreter rounds to bfloat16 wrongly, so the
kernel then computes in float32."""


@triton.jit
def _decoded(
    codes, points, place, mask, KIND: tl.constexpr, BLOCK: tl.constexpr, BEND: tl.constexpr
):
    """The weights at the positions `place` of the flattened matrix, divided by their scales.

    They are decoded from the stored bytes `codes`, by a formula or by the table `points`. Where
    `mask` is false, nothing is read, and the result has no meaning. KIND is the format (see
    `NoiseStore`), and BLOCK the number of weights per byte. BEND is a constant of the formula for
    int8, value = level (1 + BEND level^2), where level is the byte minus 128.
    """
    byte = tl.load(codes + place // BLOCK, mask=mask, other=0).to(tl.int32)
    component = (place % BLOCK).to(tl.int32)
    if KIND == "int8":
        level = (byte - 128).to(tl.float32)
        values = level * (1 + BEND * level * level)
    elif KIND == "int4":
        values = tl.load(points + 2 * byte + component)
    else:
        power = tl.where(component == 0, 1, tl.where(component == 1, 3, 9))
        power = tl.where(component == 3, 27, tl.where(component == 4, 81, power))
        values = (byte // power % 3 - 1).to(tl.float32)
    return values


@triton.jit
def _scales(
    fine, coarse, base, place, mask, GROUP: tl.constexpr, GROUPS: tl.constexpr, STEP: tl.constexpr
):
    """The scales of the weights at the positions `place` of the flattened matrix.

    A decoded number times its scale is the weight. A scale is stored as two codes, one in `coarse`
    and one in `fine`; `base` holds the largest scale (see `NoiseStore`). GROUP is the number of
    weights per scale, and GROUPS the number of scales per coarse code. If the sum of the two codes
    is larger by STEP, the scale is half as large.
    """
    group = place // GROUP
    run, number = group // GROUPS, (group % GROUPS).to(tl.int32)
    half: tl.constexpr = GROUPS // 2
    pair = tl.load(fine + run * half + number % half, mask=mask, other=0).to(tl.int32)
    nibble = (pair >> (4 * (number // half))) & 15
    code = tl.load(coarse + run, mask=mask, other=0).to(tl.int32) + nibble
    return tl.exp2(-code.to(tl.float32) / STEP) * tl.load(base)


@triton.jit
def _product(
    x, codes, points, fine, coarse, base, out, rows, outputs, inputs,
    KIND: tl.constexpr, BLOCK: tl.constexpr, BEND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, STEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the product x W' and write it to `out`, where ' is the transpose.

    W is a matrix of noise, stored as codes and scales (see `NoiseStore`). Parts of it are decoded
    when needed. `_decoded` and `_scales` explain the constants KIND to STEP. BM x BN is the size of
    the tile, and BK the number of inputs per step. With WIDEN, the product is computed in float32.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for first in range(0, inputs, BK):
        k = first + tl.arange(0, BK)
        inside = (m[:, None] < rows) & (k[None, :] < inputs)
        entries = tl.load(x + m[:, None].to(tl.int64) * inputs + k[None, :], mask=inside, other=0.0)
        mask = (k[:, None] < inputs) & (n[None, :] < outputs)
        place = n[None, :].to(tl.int64) * inputs + k[:, None]
        values = _decoded(codes, points, place, mask, KIND, BLOCK, BEND)
        values = values * _scales(fine, coarse, base, place, mask, GROUP, GROUPS, STEP)
        values = tl.where(mask, values, 0.0)
        if WIDEN:
            entries = entries.to(tl.float32)
        else:
            values = values.to(entries.dtype)
        total += tl.dot(entries, values, input_precision="ieee")
    inside = (m[:, None] < rows) & (n[None, :] < outputs)
    target = out + m[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


def fused_product(x: Tensor, noise: Any) -> Tensor:
    """The product of x with the transpose of packed noise, which is never unpacked as a whole.

    Args:
        x: Shape (rows, in), float32, bfloat16 or float16, on the device of the noise.
        noise: A `NoiseStore` of kind int8, int4 or ternary, of shape (out, in).

    Returns:
        Shape (rows, out), in the dtype of x. Products are summed in float32. The weights are first
        rounded to the dtype of x, as in a dense layer of that dtype.
    """
    book, x = CODEBOOKS[noise.kind], x.contiguous()
    rows, (outputs, inputs) = len(x), (noise.out_features, noise.in_features)
    kind = torch.float32 if INTERPRETED else x.dtype
    out = torch.empty(rows, outputs, dtype=kind, device=x.device)
    grid = triton.cdiv(rows, ROWS), triton.cdiv(outputs, OUTPUTS)
    if not out.numel():
        return out.to(x.dtype)
    _product[grid](
        x,
        noise.codes,
        table(SPIRAL, x.device),
        noise.fine,
        noise.coarse,
        noise.base.view(torch.float32),
        out,
        *(rows, outputs, inputs),
        KIND=noise.kind,
        BLOCK=book.block,
        BEND=CUBIC / 128**2,
        GROUP=book.group,
        GROUPS=RUN,
        STEP=SCALE_STEP,
        **{"BM": ROWS, "BN": OUTPUTS, "BK": INPUTS},
        WIDEN=INTERPRETED,
    )
    return out.to(x.dtype)
