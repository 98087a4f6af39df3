from __future__ import annotations

import pytest
import torch

from hf_rmt.nn.stores.codebooks import RUN
from hf_rmt.nn.stores.group_scales import repeated, scale_codes


@pytest.mark.parametrize("offset", [0, 3])
def test_codes_are_coarse_plus_nibble(offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    runs = 7
    bytes_ = torch.randint(0, 256, (offset + runs * RUN // 2,), generator=generator)
    fine = bytes_.to(torch.uint8)[offset:]
    coarse = torch.randint(0, 241, (runs,), generator=generator).to(torch.uint8)
    expected = [
        int(coarse[run]) + (int(fine[8 * run + place % 8]) >> (4 if place >= 8 else 0) & 15)
        for run in range(runs)
        for place in range(RUN)
    ]
    assert scale_codes(fine, coarse).tolist() == expected


@pytest.mark.parametrize("group", [8, 16, 40])
def test_scales_are_those_of_their_codes(group: int) -> None:
    grid = torch.rand(256, generator=torch.Generator().manual_seed(0))
    codes = torch.arange(0, 256, 5).to(torch.uint8)
    values = torch.ones(len(codes), group) * repeated(grid, codes, group)
    assert torch.equal(values, grid[codes.long()][:, None].expand(-1, group))
