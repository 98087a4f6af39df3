"""Unpacks noise in one pass, by machine code that Numba compiles for this processor.

Noise is a weight minus its low-rank signal; `NoiseStore` explains how it is packed. Torch takes
several passes over the weights, and looks values up slowly. Here one pass finds the value of each
code, multiplies it by the scale of its group of weights and writes the product. The results are the
same as those of torch, bit for bit.
"""

# Numba's decorator has no types, and the functions that it compiles need none.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, library

from hf_rmt.nn.stores.codebooks import CODEBOOKS, RUN, Codebook
from hf_rmt.nn.stores.machine_code import can_read, compiled, largest, points, scales, shared_out

__all__ = ["can_read", "unpack"]
RUNS_AT_ONCE = 8
"""Number of runs that are unpacked together, so that they fit into the processor's first cache. A
run is `RUN` groups of weights, with one scale for each group."""
library.define(
    "hf_rmt::unpack",
    "(Tensor codes, Tensor fine, Tensor coarse, Tensor base, str kind, Tensor(a!) out) -> ()",
)


def unpack(
    codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, kind: str, out: Tensor | None
) -> Tensor:
    """Unpack the weights of some runs that a `NoiseStore` has packed.

    A group is some neighbouring weights that share one scale. A run is 16 groups.

    Args:
        codes: Codes of the runs, uint8, contiguous.
        fine: Fine codes of the scales, 4 bits for each group, so 8 bytes per run.
        coarse: Coarse codes of the scales, one byte per run.
        base: The largest scale, as the bits of its float32.
        kind: `int8`, `int4` or `ternary`.
        out: Where to write the weights: contiguous float32, with one entry for each weight of the
            runs. None for a new tensor.

    Returns:
        The weights, flat float32.
    """
    if out is None:
        size = len(coarse) * CODEBOOKS[kind].run
        out = torch.empty(size, dtype=torch.float32, device=codes.device)
    torch.ops.hf_rmt.unpack(codes, fine, coarse, base, kind, out)
    return out


def _unpack(
    codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, kind: str, out: Tensor
) -> None:
    book, kernel = CODEBOOKS[kind], _kernel(kind)
    stored = codes.numpy(), fine.numpy(), coarse.numpy()
    grid, weights, values = scales() * largest(base), out.numpy(), points(kind)
    sizes = book.run_bytes, RUN // 2, 1

    def work(first: int, last: int) -> None:
        pieces = (
            array[first * size : last * size] for array, size in zip(stored, sizes, strict=True)
        )
        kernel(*pieces, grid, values, weights[first * book.run : last * book.run])

    shared_out(work, len(coarse), out.numel())


library.impl("hf_rmt::unpack", "cpu", _unpack)
library.register_fake("hf_rmt::unpack", lambda *_: None)


@cache
def _kernel(kind: str) -> Callable[..., None]:
    """The machine code that unpacks noise of a kind such as `int8`; see `NoiseStore`."""
    book = CODEBOOKS[kind]
    loop = _lookup(book) if book.cubic is None else _polynomial(book)
    bytes_, floats = np.empty(0, np.uint8), np.empty(0, np.float32)
    return compiled(loop, kind, bytes_, bytes_, bytes_, floats, floats, floats)


def _lookup(book: Codebook) -> Callable[..., None]:
    """Make a function that unpacks a `NoiseStore`: a table holds the weights of each byte."""
    block, bytes_, half = book.block, book.group // book.block, RUN // 2

    def loop(codes, fine, coarse, scales, points, out):
        for run in range(len(coarse)):
            for group in range(RUN):
                pair = fine[run * half + group % half]
                nibble = (pair >> (4 * (group // half))) & 15
                scale = scales[(np.intp(coarse[run]) + nibble) & 255]
                first = (run * RUN + group) * bytes_
                for place in range(bytes_):
                    code = np.intp(codes[first + place])
                    for part in range(block):
                        out[(first + place) * block + part] = points[code * block + part] * scale

    return loop


def _polynomial(book: Codebook) -> Callable[..., None]:
    """Make a function that unpacks a `NoiseStore`: a formula gives the weight of each byte.

    Its inner loops compile to vector instructions. So it takes half of the time that the function
    from `_lookup` takes, with AVX2 and with AVX-512.
    """
    group, run, half, once = book.group, book.run, RUN // 2, RUNS_AT_ONCE
    cubic, middle = np.float32(book.cubic), np.float32(128)

    def loop(codes, fine, coarse, scales, points, out):
        steps = np.empty(once * RUN, np.float32)
        for low in range(0, len(coarse), once):
            high = min(low + once, len(coarse))
            taken, weights = codes[low * run : high * run], out[low * run : high * run]
            for place in range(len(weights)):
                level = np.float32(taken[place]) - middle
                weights[place] = level + level * level * level * cubic
            for number in range(low, high):
                for place in range(half):
                    pair, first = fine[number * half + place], (number - low) * RUN + place
                    code = np.intp(coarse[number])
                    steps[first] = scales[(code + (pair & 15)) & 255]
                    steps[first + half] = scales[(code + (pair >> 4)) & 255]
            for place in range((high - low) * RUN):
                scale = steps[place]
                for part in range(group):
                    weights[place * group + part] *= scale

    return loop
