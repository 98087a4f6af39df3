"""Packs noise in one pass, by machine code that Numba compiles for this processor.

Noise is a weight minus its low-rank signal; `NoiseStore` explains how it is packed. Torch takes
about fifteen passes over the weights for each scale that is tried. Here one loop tries all scales
of a group of weights while these are in registers or in the processor's first cache. The codes are
the same as those from torch, bit for bit: every sum and product is rounded in the same order.
"""

# Numba's decorator has no types, and the functions that it compiles need none.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rmt.nn.stores.codebooks import (
    CELLS,
    CODEBOOKS,
    FINE_CODES,
    LEVEL_CELLS,
    LEVEL_FACTOR,
    LEVELS,
    RUN,
    SCALES,
    SPIRAL_FACTOR,
    Codebook,
)
from hf_rmt.nn.stores.machine_code import (
    callable_in_loops,
    can_read,
    compiled,
    points,
    shared_out,
)


def can_pack(kind: str, runs: Tensor) -> bool:
    """Whether compiled loops can pack weights: the format is a built-in one, and Numba works.

    Args:
        kind: The format, such as `int8`. Formats that other code adds are packed by torch.
        runs: The weights, as `best_codes` takes them.
    """
    return kind in _ENCODERS and can_read(runs)


def best_codes(kind: str, runs: Tensor, start: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Find the codes of weights and the fine scale codes of groups with the least squared error.

    A group is some neighbouring weights with one scale, and a run is `RUN` groups. The code of a
    scale is the coarse code of the run plus the fine code of the group; see `NoiseStore`.

    Args:
        kind: `int8`, `int4` or `ternary`.
        runs: Weights divided by the largest absolute value in the matrix, float32, shape (number of
            runs, `RUN`, weights in a group).
        start: Scale codes at which the search starts, float32, shape (number of runs, `RUN`).
        coarse: Coarse codes of the runs, float32, shape (number of runs, 1).

    Returns:
        The codes, uint8 of shape (number of runs, bytes of a run), and the fine codes, uint8 of
        shape (number of runs, `RUN`).
    """
    book, kernel = CODEBOOKS[kind], _kernel(kind)
    codes = torch.zeros((len(runs), book.run_bytes), dtype=torch.uint8, device="cpu")
    fine = torch.zeros((len(runs), RUN), dtype=torch.uint8, device="cpu")
    given = runs.contiguous().numpy(), start.contiguous().numpy(), coarse.contiguous().numpy()
    tables = _scales(kind), _cells(kind), points(kind)
    made = codes.numpy(), fine.numpy()

    def work(first: int, last: int) -> None:
        parts = (each[first:last] for each in (*given, *made))
        kernel(*parts, *tables)

    shared_out(work, len(runs), runs.numel())
    return codes, fine


@cache
def _scales(kind: str) -> Any:
    """The scale for each scale code (see `NoiseStore`) if the largest absolute weight is 1."""
    return np.asarray(SCALES, dtype=np.float32) * np.float32(CODEBOOKS[kind].unit)


@cache
def _cells(kind: str) -> Any:
    """The table with which weights are rounded, see `CELLS`; a single 0 if `kind` needs none."""
    book = CODEBOOKS[kind]
    return np.zeros(1, np.uint8) if book.cells is None else book.cells().numpy()


@cache
def _kernel(kind: str) -> Callable[..., None]:
    """The machine code that packs noise of a kind such as `int8`; see `NoiseStore`."""
    book = CODEBOOKS[kind]
    values = np.zeros((0, RUN, book.group), np.float32)
    start, coarse = np.zeros((0, RUN), np.float32), np.zeros((0, 1), np.float32)
    codes, fine = np.zeros((0, book.run_bytes), np.uint8), np.zeros((0, RUN), np.uint8)
    tables = _scales(kind), _cells(kind), points(kind)
    return compiled(_search(kind, book), kind, values, start, coarse, codes, fine, *tables)


def _search(kind: str, book: Codebook) -> Callable[..., None]:
    """Make the loop that packs noise as `NoiseStore` stores it.

    For each group of weights, the loop tries one scale after the other. It stores the codes with
    the least squared error, and the code of their scale.
    """
    encode: Any = callable_in_loops(_ENCODERS[kind](book))
    group, block, bytes_ = book.group, book.block, book.group // book.block
    first, last, most = book.offsets.start, book.offsets.stop, FINE_CODES - 1

    def loop(values, start, coarse, codes, fine, scales, cells, points):
        errors, found = np.empty(group, np.float32), np.empty(bytes_, np.uint8)
        for run in range(len(values)):
            base = int(coarse[run, 0])
            for number in range(RUN):
                given, best = values[run, number], np.float32(np.inf)
                for offset in range(first, last):
                    tried = min(max(int(start[run, number]) + offset - base, 0), most)
                    scale = scales[base + tried]
                    for byte in range(bytes_):
                        code = encode(given, byte * block, scale, cells)
                        found[byte] = code
                        for place in range(byte * block, (byte + 1) * block):
                            point = points[code * block + place - byte * block]
                            rest = point * scale - given[place]
                            errors[place] = rest * rest
                    width = group
                    while width % 2 == 0:  # as `summed` does
                        width //= 2
                        for place in range(width):
                            errors[place] += errors[place + width]
                    error = errors[0]
                    for place in range(1, width):
                        error += errors[place]
                    if error < best:
                        best, fine[run, number] = error, tried
                        for byte in range(bytes_):
                            codes[run, number * bytes_ + byte] = found[byte]

    return loop


def _level(book: Codebook) -> Callable[..., Any]:
    """Make a function that returns the `int8` code of one weight."""
    low, factor = np.float32(LEVELS[0]), np.float32(LEVEL_FACTOR)
    zero, top = np.float32(0), np.float32(LEVEL_CELLS - 1)

    def encode(given, place, scale, cells):
        cell = (given[place] / scale - low) * factor
        return np.uint32(cells[np.uint32(np.int32(min(max(cell, zero), top)))])

    return encode


def _spiral(book: Codebook) -> Callable[..., Any]:
    """Make a function that returns the `int4` code of two weights."""
    factor, middle = np.float32(SPIRAL_FACTOR), np.float32(CELLS / 2)
    zero, top = np.float32(0), np.float32(CELLS - 1)

    def encode(given, place, scale, cells):
        x = given[place] / scale * factor + middle
        y = given[place + 1] / scale * factor + middle
        row, column = np.int32(min(max(x, zero), top)), np.int32(min(max(y, zero), top))
        return np.uint32(cells[np.uint32(row * CELLS + column)])

    return encode


def _trits(book: Codebook) -> Callable[..., Any]:
    """Make a function that returns the `ternary` code of five weights."""
    block, one = book.block, np.float32(1)

    def encode(given, place, scale, cells):
        code, power = 0, 1
        for part in range(block):
            trit = np.rint(given[place + part] / scale)
            code += (int(min(max(trit, -one), one)) + 1) * power
            power *= 3
        return np.uint32(code)

    return encode


_ENCODERS = {"int8": _level, "int4": _spiral, "ternary": _trits}
"""For each format: a function that takes its `Codebook`, and returns the function that computes the
code of one byte."""
