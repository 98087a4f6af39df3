from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_rmt.nn.layouts import ACTIVATIONS, set_layout
from tests.nn.layouts.layers import IN, RANK, layer_of, normal


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("tokens", [1, 3])
def test_what_is_not_finite_spoils_its_row_alone(bad: float, rank: int, tokens: int) -> None:
    layer = layer_of("int8", rank=rank)
    set_layout(layer, "int8")
    x = normal(tokens, IN)
    x[0, 5] = bad
    with torch.no_grad():
        result = layer(x)
    assert not result[0].isfinite().any()
    assert result[1:].isfinite().all()


def test_two_digits_are_near_exact() -> None:
    """A second digit of 6 bits or more divides the rounding of inputs by 126 at least."""
    layer, x = layer_of("int8"), normal(40, IN, seed=4)
    x[:, 7] *= 1000  # one digit loses the others beside it
    noise = layer.noise.dense()
    unit = noise.abs().amax(1, keepdim=True) / 127
    rounded = (noise / unit).round() * unit + layer.dense() - noise
    exact = nn.functional.linear(x, rounded, layer.bias)
    errors = {}
    for activations in ACTIVATIONS:
        set_layout(layer, "int8", activations=activations)
        with torch.no_grad():
            errors[activations] = (layer(x) - exact).norm() / exact.norm()
    assert errors["int16"] < errors["int8"] / 30
