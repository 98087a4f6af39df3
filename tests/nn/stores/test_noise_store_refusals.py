from __future__ import annotations

import math

import pytest
import torch

from hf_rmt.nn import NoiseStore, stored_bits
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from tests.nn.stores.filled import filled, gaussian

PACKED = tuple(CODEBOOKS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_weights_are_refused(bad: float) -> None:
    weight = gaussian(4, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="nan, inf"):
        filled("int8", weight)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise must be one of .* got 'int3'"):
        NoiseStore("int3", 4, 4)
    with pytest.raises(ValueError, match="got 'int3'"):
        stored_bits((4, 4), 1, "int3", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"shape \(4, 4\), got \(4, 5\)"):
        NoiseStore("int8", 4, 4).store(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="stores no noise"):
        NoiseStore("drop", 4, 4).dense()


@pytest.mark.parametrize("kind", PACKED)
def test_weights_below_the_range_of_the_scales_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="scales in float32 need"):
        filled(kind, gaussian(8, 80).double() * 1e-60)
    filled("keep", gaussian(8, 80).double() * 1e-60)
    filled(kind, torch.zeros(8, 80).double())
