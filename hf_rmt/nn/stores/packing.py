"""Packs weights into bytes (codes) and scales, a few rows at a time; see `NoiseStore`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.stores.codebooks import (
    CODEBOOKS,
    FINE_CODES,
    RUN,
    SCALE_STEP,
    SCALES,
    Codebook,
    table,
)
from hf_rmt.nn.stores.group_scales import repeated

CHUNK = 2**15
CHUNKS = 24
"""Weights are packed in pieces of CHUNK entries, or of 1 / CHUNKS of the matrix if this is more.
So packing needs only a fraction of the memory of the matrix."""

packer: Any = None
"""The module `jit_packing`, which the package sets. It is None in the code file that is saved with
a model, so that the model loads without this package."""


def rows_at_once(shape: Sequence[int]) -> int:
    """How many rows of a weight of this shape to work on at once, to save memory."""
    return max(1, max(CHUNK, shape[0] * shape[1] // CHUNKS) // max(1, shape[1]))


def store_sizes(book: Codebook, size: int) -> tuple[int, int, int]:
    """Bytes of the buffers `codes`, `fine` and `coarse` of a `NoiseStore` for `size` weights."""
    runs = -(-size // book.run)
    return runs * book.run_bytes, runs * RUN // 2, runs


def row_chunks(
    weight: Tensor, signal: tuple[Tensor, Tensor] | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield chunks of rows of a weight, minus its low-rank signal if one is given.

    The signal is the product of the factors (left, right). Each chunk comes with the index of its
    first row, as (index, rows). The rows are in float32 or wider.
    """
    step, dtype = rows_at_once(weight.shape), torch.promote_types(weight.dtype, torch.float32)
    for start in range(0, len(weight), step):
        rows = weight[start : start + step].to(dtype)
        if signal is not None:
            left, right = (factor.to(dtype) for factor in signal)
            rows = torch.addmm(rows, left[start : start + step], right, alpha=-1)
        yield start, rows


def pack_runs(kind: str, runs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of some weights and of their scales, chosen for the least squared error.

    A group is some neighbouring weights with one scale, and a run is `RUN` groups.

    Args:
        kind: `int8`, `int4` or `ternary`.
        runs: Weights divided by the largest absolute value in the matrix, float32, shape (number of
            runs, `RUN`, weights in a group).

    Returns:
        `codes`, `fine` and `coarse` as in `NoiseStore`, all uint8. Their shapes are (number of
        runs, bytes of a run), (number of runs, `RUN` / 2) and (number of runs,).
    """
    book = CODEBOOKS[kind]
    size = runs.abs().amax(2) if book.largest else runs.square().mean(2).sqrt()
    start = torch.round(-SCALE_STEP * torch.log2(size)).clamp_max(255)
    coarse = (start.amin(1, keepdim=True) + book.offsets[0]).clamp(0, 256 - FINE_CODES)
    compiled = packer is not None and packer.can_pack(kind, runs)
    codes, fine = (packer.best_codes if compiled else _best_codes)(kind, runs, start, coarse)
    low, high = fine.view(-1, 2, RUN // 2).unbind(1)
    return codes, low | high << 4, coarse.flatten().to(torch.uint8)


def _best_codes(kind: str, runs: Tensor, start: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Do with torch what `jit_packing.best_codes` does, with the same arguments and results."""
    book = CODEBOOKS[kind]
    groups, grid = runs.view(-1, book.group), table(SCALES, runs.device) * book.unit
    best = torch.full_like(start, torch.inf).flatten()
    codes = torch.zeros(len(groups), dtype=torch.int64, device=runs.device)
    fine = torch.zeros_like(best, dtype=torch.uint8)
    for offset in book.offsets:
        tried = (start + offset - coarse).clamp_(0, FINE_CODES - 1)
        scales = repeated(grid, (coarse + tried).to(torch.uint8).flatten(), book.group)
        bytes_ = book.encode(groups / scales)
        values = book.decode(bytes_.flatten()).view_as(groups).mul_(scales)
        error = summed(values.sub_(groups).square_())
        better = error < best
        best = torch.where(better, error, best)
        fine = torch.where(better, tried.flatten().to(torch.uint8), fine)
        codes = torch.where(better, bytes_.view(torch.int64).flatten(), codes)
    return codes.view(torch.uint8).view(len(runs), -1), fine.view(len(runs), RUN)


def summed(rows: Tensor) -> Tensor:
    """The sum of each row, in an order that is the same on every processor and in compiled loops.

    The second half of each row is added to the first one as long as the length is even.
    """
    width = rows.shape[1]
    while width % 2 == 0:
        width //= 2
        rows = rows[:, :width] + rows[:, width:]
    total = rows[:, 0]
    for column in range(1, width):
        total = total + rows[:, column]
    return total
