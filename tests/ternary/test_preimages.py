"""Levels before a function: what it makes of them, and when they must move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_rmt.ternary.functions import Function, module_function
from hf_rmt.ternary.preimages import FLAT, levels_before

BOUNDED = {"tanh": (-1, 1), "sigmoid": (0, 1), "hardtanh": (-1, 1), "softsign": (-1, 1)}
HALF = {"relu": 0.0, "softplus": 0.0, "gelu": -0.17, "silu": -0.279, "mish": -0.31, "elu": -1.0}


def of(name: str) -> Function:
    return Function(name, name)


@pytest.mark.parametrize("name", [*BOUNDED, *HALF, "leaky_relu", "logsigmoid"])
def test_the_function_takes_the_wanted_values_at_the_levels(name: str) -> None:
    low, high = BOUNDED.get(name, (HALF.get(name, -2.0), -0.1 if name == "logsigmoid" else 3.0))
    width = high - low
    wanted = [low + 0.3 * width, low + 0.8 * width, low + 0.3 * width]
    levels = levels_before(of(name), wanted, free=False)
    assert levels is not None
    assert (levels.gain, levels.moved) == (1.0, False)
    assert levels.values == pytest.approx(wanted, rel=1e-9)
    assert of(name).values(levels.heights) == pytest.approx(wanted, rel=1e-9)
    assert of(name).slopes(levels.heights) == pytest.approx(levels.slopes)
    assert min(map(abs, levels.slopes)) > 0


@pytest.mark.parametrize("name", [*BOUNDED, *HALF])
@pytest.mark.parametrize("wanted", [[-30.0, 40.0, -30.0], [-5.0, -4.9], [7.0, 7.1]])
def test_levels_out_of_reach_move_and_shrink_only_if_they_must(
    name: str, wanted: list[float]
) -> None:
    function, span = of(name), max(wanted) - min(wanted)
    if name in BOUNDED or min(wanted) < HALF[name]:
        assert levels_before(function, wanted, free=False) is None
    levels = levels_before(function, wanted, free=True)
    assert levels is not None
    assert function.values(levels.heights) == pytest.approx(levels.values)
    assert (levels.gain < 1) == (name in BOUNDED and span > 2)
    jumps = torch.tensor(levels.values).diff() / torch.tensor(wanted).diff()
    assert jumps.tolist() == pytest.approx([levels.gain] * len(jumps), rel=1e-5)
    assert min(map(abs, levels.slopes)) >= 0.99 * FLAT * 0.25


def test_a_level_where_relu_is_flat_would_let_no_gradient_pass() -> None:
    assert levels_before(of("relu"), [0.0, 2.0], free=False) is None
    levels = levels_before(of("relu"), [0.0, 2.0], free=True)
    assert levels is not None
    assert levels.slopes == [1.0, 1.0]
    assert levels.values[1] - levels.values[0] == pytest.approx(2.0)


def test_a_constant_takes_no_levels() -> None:
    assert levels_before(Function("nothing", "hardtanh", (0.0, 0.0)), [0.0, 1.0], free=True) is None


@pytest.mark.parametrize("module", [nn.Softmax(dim=-1), nn.PReLU(), nn.Linear(2, 2), nn.Identity()])
def test_modules_that_are_no_functions_of_each_entry(module: nn.Module) -> None:
    assert module_function(module) is None
