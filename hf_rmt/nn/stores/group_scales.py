"""Scales of the groups of a packed weight: their codes, and as numbers beside the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rmt.nn.stores.codebooks import RUN

NIBBLES, ONES = 0x0F0F0F0F0F0F0F0F, 0x0101010101010101
"""The lower nibble of each of eight bytes, and one in each."""
TWICE = 2**32 + 1
"""A number below 2^32 times this one is itself twice, in 32 bits each."""


def scale_codes(fine: Tensor, coarse: Tensor) -> Tensor:
    """Scale codes of the groups of some runs, flat, one byte each.

    Args:
        fine: Nibbles of the groups, RUN / 2 bytes a run.
        coarse: A byte a run.
    """
    if torch.compiler.is_compiling() or fine.device.type != "cpu":
        pairs = fine.view(-1, RUN // 2)
        return (torch.cat([pairs & 15, pairs >> 4], dim=1) + coarse[:, None]).flatten()
    # The eight bytes of a run are worked on as one number; no sum leaves its byte.
    if fine.storage_offset() % 8:
        fine = fine.clone()
    bytes_ = fine.view(torch.int64)
    nibbles = torch.stack([bytes_ & NIBBLES, bytes_ >> 4 & NIBBLES], dim=1)
    return nibbles.add_(coarse.to(torch.int64).mul_(ONES)[:, None]).view(torch.uint8).flatten()


def repeated(grid: Tensor, codes: Tensor, group: int) -> Tensor:
    """Entries of a grid by their codes, to be multiplied with groups of so many weights."""
    compiling = torch.compiler.is_compiling()
    if group == 8 and codes.device.type == "cpu" and not compiling:
        return _eightfold(grid, codes).view(-1, group)
    return grid.index_select(0, codes.to(torch.int32))[:, None]


def _eightfold(grid: Tensor, codes: Tensor) -> Tensor:
    """Entries of a grid by their codes, each eight times in a row, flat.

    Four equal numbers travel as one complex number of 128 bits, which is several times as fast as
    multiplying with a scale that is repeated along rows of eight.
    """
    fours = torch.view_as_complex(grid[:, None].expand(-1, 4).contiguous().view(torch.float64))
    twice = codes.to(torch.int64).mul_(TWICE).view(torch.int32)
    return torch.view_as_real(fours.index_select(0, twice)).view(torch.float32).flatten()
