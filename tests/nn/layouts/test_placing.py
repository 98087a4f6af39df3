from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hf_rmt.nn import SpikedConv2d, TernaryLinear
from hf_rmt.nn.layouts import layout_line, memory_bytes, set_layout
from tests.nn.layouts.layers import IN, OUT, layer_of


def test_the_line_says_what_runs_and_what_it_takes() -> None:
    model = nn.Sequential(layer_of("int8"), layer_of("drop"), TernaryLinear(IN, OUT))
    line = set_layout(model, "dense")
    assert line.startswith("layouts: 2 dense, 1 packed; ")
    assert line == layout_line(model)
    assert layout_line(nn.Linear(2, 2)) == ""
    assert memory_bytes(model[0]) > IN * OUT * 4


def test_a_layer_without_a_layout_stays_packed() -> None:
    conv = SpikedConv2d(16, 16, 2, kernel_size=3)
    set_layout(conv, "int8")
    assert conv.layout == "packed"


def test_without_a_compressed_layer_the_line_says_so() -> None:
    assert "has no compressed layer" in set_layout(nn.Linear(2, 2), "int8")


@pytest.mark.parametrize(
    ("tokens", "error"),
    [(3, TypeError), ("a", TypeError), ((), TypeError), ((0,), ValueError), ((1.5,), TypeError)],
)
def test_numbers_of_tokens_are_checked(tokens: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="tokens must be"):
        set_layout(layer_of("int8"), "fastest", tokens=tokens)


def test_names_are_checked() -> None:
    with pytest.raises(
        ValueError, match="layout must be one of dense, fused, int8, packed, fastest"
    ):
        set_layout(layer_of("int8"), "int4")
    with pytest.raises(ValueError, match="activations must be one of int8, int16"):
        set_layout(layer_of("int8"), "int8", activations="int4")
