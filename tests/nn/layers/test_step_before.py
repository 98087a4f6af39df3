"""A step before a function: behind it, values and gradients are those of a step in its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_rmt.nn import LatentTernaryLinear, StepActivation, StepBefore, TernaryLinear
from hf_rmt.nn.counterparts import densify, place_step

HEIGHTS = [-0.5, 1.2, 0.3]
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [torch.tanh, functional.gelu, functional.silu]


def before(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> StepBefore:
    x = torch.tensor(HEIGHTS, dtype=torch.float64, requires_grad=True)
    values = function(x)
    (slopes,) = torch.autograd.grad(values.sum(), x)
    told = {"values": values.tolist(), "slopes": slopes.tolist(), "dtype": dtype}
    return StepBefore([-1.0, 0.4], HEIGHTS, width=0.7, **told)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_and_gradients_behind_the_function_are_those_of_a_step(
    function: Callable[[Tensor], Tensor],
) -> None:
    step = before(function)
    plain = StepActivation([-1.0, 0.4], step.values.tolist(), width=0.7, dtype=torch.float64)
    x = torch.linspace(-3, 3, 301, dtype=torch.float64).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.linspace(1, 2, 301, dtype=torch.float64)
    found, expected = function(step(x)), plain(y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-14)
    assert x.grad.abs().max() > 0.1


def layer() -> TernaryLinear:
    torch.manual_seed(0)
    return TernaryLinear.from_linear(nn.Linear(30, 20))


def with_step() -> TernaryLinear:
    made = layer()
    made.step = before(torch.tanh, torch.float32)
    return made


def test_a_layer_gives_levels_and_its_state_holds_them() -> None:
    made, x = with_step(), torch.randn(50, 30)
    assert set(made(x).unique().tolist()) <= {float(torch.tensor(height)) for height in HEIGHTS}
    torch.testing.assert_close(made(x), made.step(layer()(x)))
    other = with_step()
    other.step.heights.zero_()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))
    assert {f"step.{name}" for name in ("heights", "thresholds", "values", "slopes", "mean")} < set(
        made.state_dict()
    )


def test_the_layer_trains_with_its_step_and_keeps_it() -> None:
    made, x = with_step(), torch.randn(50, 30)
    latent = LatentTernaryLinear.from_ternary(made)
    torch.testing.assert_close(latent(x), made(x))
    latent(x).tanh().square().sum().backward()
    assert latent.weight.grad.abs().sum() > 0
    assert latent.freeze().step is made.step
    torch.testing.assert_close(latent.freeze()(x), made(x))


def test_a_graph_gives_what_the_layer_gives() -> None:
    made = with_step().eval()
    with torch.no_grad():
        sizes = ({0: torch.export.Dim("batch")},)
        graph = torch.export.export(made, (torch.randn(2, 30),), dynamic_shapes=sizes).module()
        x = torch.randn(64, 30)
        torch.testing.assert_close(graph(x), made(x))


def test_no_dense_layer_stands_for_one_with_a_step() -> None:
    with pytest.raises(ValueError, match=r"'0\.step' is a step activation"):
        densify(nn.Sequential(with_step()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": [0.0, 1.0]}, "values must be 3 finite numbers"),
        ({"slopes": [0.1, float("nan"), 1.0]}, "slopes must be 3 finite numbers"),
        ({"slopes": [0.1, 0.0, 1.0]}, "slopes must not be 0"),
    ],
)
def test_numbers_that_cannot_be(changes: dict[str, list[float]], words: str) -> None:
    told = {"values": [0.0, 0.5, 1.0], "slopes": [0.1, 0.5, 1.0], **changes}
    with pytest.raises(ValueError, match=words):
        StepBefore([-1.0, 0.4], HEIGHTS, **told)


def test_a_dense_layer_has_no_room_for_a_step() -> None:
    step = {"function": "tanh", "thresholds": [0.0], "heights": [-1.0, 1.0]}
    step |= {"values": [-0.76, 0.76], "slopes": [0.42, 0.42], "gain": 1.0}
    with pytest.raises(ValueError, match=r"only a ternary layer can hold.*is a Linear"):
        place_step(nn.Sequential(nn.Linear(2, 2)), "0", step)
