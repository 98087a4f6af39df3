"""Turns the codes of scales into the scales by which unpacked weights are multiplied.

Each group of neighbouring weights has one scale. `NoiseStore` explains how weights are packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.nn.stores.codebooks import RUN

NIBBLES, ONES = 0x0F0F0F0F0F0F0F0F, 0x0101010101010101
"""Two constants of 64 bits: a mask of the lower 4 bits of each byte, and a 1 in each byte."""
TWICE = 2**32 + 1
"""The product of this constant and a number below 2^32 holds the number twice: in its upper and in
its lower 32 bits."""


def scale_codes(fine: Tensor, coarse: Tensor) -> Tensor:
    """The code of the scale of each group, one byte each, as a flat tensor.

    A group is some neighbouring weights with one scale, and a run is `RUN` groups. The code of a
    scale is the coarse code of the run plus the fine code of the group.

    Args:
        fine: Fine codes of the groups, 4 bits each, so `RUN` / 2 bytes per run.
        coarse: Coarse codes, one byte per run.
    """
    if torch.compiler.is_compiling() or fine.device.type != "cpu":
        pairs = fine.view(-1, RUN // 2)
        return (torch.cat([pairs & 15, pairs >> 4], dim=1) + coarse[:, None]).flatten()
    # The eight bytes of a run are processed as one number; no sum is larger than a byte.
    if fine.storage_offset() % 8:
        fine = fine.clone()
    bytes_ = fine.view(torch.int64)
    nibbles = torch.stack([bytes_ & NIBBLES, bytes_ >> 4 & NIBBLES], dim=1)
    return nibbles.add_(coarse.to(torch.int64).mul_(ONES)[:, None]).view(torch.uint8).flatten()


def repeated(grid: Tensor, codes: Tensor, group: int) -> Tensor:
    """Look up the scale of each group, to multiply weights of shape (groups, `group`) by it.

    Args:
        grid: The scale for each code.
        codes: Codes of scales, one for each group of weights.
        group: Number of weights in a group, which share one scale.

    Returns:
        The scales, shape (groups, 1). If it is faster, each scale is repeated along its row, and
        the shape is (groups, `group`).
    """
    compiling = torch.compiler.is_compiling()
    if group == 8 and codes.device.type == "cpu" and not compiling:
        return _eightfold(grid, codes).view(-1, group)
    return grid.index_select(0, codes.to(torch.int32))[:, None]


def _eightfold(grid: Tensor, codes: Tensor) -> Tensor:
    """Look up the scale of each code in `grid`, and repeat it for the eight weights of its group.

    The result is flat float32. Four equal numbers are gathered as one complex number of 128 bits.
    This is several times as fast as multiplication by a scale that is repeated along rows of
    eight.
    """
    fours = torch.view_as_complex(grid[:, None].expand(-1, 4).contiguous().view(torch.float64))
    twice = codes.to(torch.int64).mul_(TWICE).view(torch.int32)
    return torch.view_as_real(fours.index_select(0, twice)).view(torch.float32).flatten()
