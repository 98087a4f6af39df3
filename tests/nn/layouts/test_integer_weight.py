from __future__ import annotations

import pytest
import torch

from hf_rmt.nn.layouts import integer_weight
from hf_rmt.nn.layouts.integer_weight import (
    LARGEST_BLOCK,
    TOP,
    IntegerWeight,
    hadamard,
    rotation_block,
    why_no_integers,
)

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["fbgemm", "int_mm"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fbgemm" and integer_weight._engine(CPU) != "fbgemm":
        pytest.skip("this torch has no fbgemm")
    if request.param == "int_mm" and integer_weight._wraps(CPU):
        pytest.skip("the plain integer product of this processor is not exact")
    monkeypatch.setattr(integer_weight, "_engine", lambda device: request.param)
    return request.param


def test_integers_are_multiplied_exactly(engine: str) -> None:
    """Weights and inputs that are integers already, of any size: no rounding, no overflow.

    Sums are exact. They are scaled in float32 afterwards, so results are integers up to rounding.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(-TOP, TOP + 1, (40, 65), generator=generator).float()
    matrix[:, 0] = TOP  # so that the scales are 1
    weight = IntegerWeight(matrix)
    assert weight.block == 1  # an odd width is not rotated
    x = torch.randint(-weight.top, weight.top + 1, (9, 65), generator=generator).float()
    x[:, 0] = weight.top
    result = weight.product(x, None, None)
    assert torch.equal(result.round(), x @ matrix.T)


@pytest.mark.parametrize("tokens", [1, 7, 3000])
@pytest.mark.parametrize("digits", [1, 2])
def test_error_is_that_of_the_rounding(engine: str, tokens: int, digits: int) -> None:
    matrix, x = normal(48, 256), normal(tokens, 256, seed=1)
    weight = IntegerWeight(matrix, digits=digits)
    exact = x.double() @ matrix.double().T
    # The unit of the weights is at most 4.5 / 127 of their deviation and that of an input 4.5 / top
    # with one digit; errors are uniform in a unit, of variance 1 / 12, on each of 256 entries.
    unit = 4.5 * torch.tensor([1 / 127, (digits == 1) / weight.top])
    bound = (256 * unit.square().sum() / 12).sqrt()
    assert (weight.product(x, None, None) - exact).square().mean().sqrt() < bound


def test_signal_and_bias_are_added_exactly(engine: str) -> None:
    zero = IntegerWeight(torch.zeros(5, 64))
    x, left, right, bias = normal(3, 64), normal(5, 2), normal(2, 64, seed=1), normal(5, seed=2)
    for rows in (x, x[:1]):
        expected = torch.nn.functional.linear(rows, left @ right, bias)
        torch.testing.assert_close(zero.product(rows, (right.T, left.T), bias), expected)
        torch.testing.assert_close(zero.product(rows, None, bias), bias.expand(len(rows), -1))


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("width", [63, 64])
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_rows_of_zeros_and_tiny_ones_stay_apart(
    engine: str, digits: int, width: int, tokens: int
) -> None:
    x, bias = normal(tokens, width), normal(5, seed=2)
    weight = IntegerWeight(normal(5, width, seed=1), digits=digits)
    expected = weight.product(x, None, bias)
    for small in (0.0, 1e-44):  # the second is below the smallest normal number
        rows = torch.cat([x, torch.full((1, width), small)])
        result = weight.product(rows, None, bias)
        torch.testing.assert_close(result[:-1], expected)
        torch.testing.assert_close(result[-1], bias)


def test_the_rotation_spreads_an_outlier(engine: str) -> None:
    """Without it the inputs beside the outlier would be rounded 30 times as coarsely."""
    matrix, x = normal(64, 512), normal(20, 512, seed=1)
    x[:, 100] = 100.0
    exact = x.double() @ matrix.double().T
    turned = IntegerWeight(matrix).product(x, None, None) - exact
    plain = IntegerWeight(matrix[:, :511].contiguous())
    straight = plain.product(x[:, :511].contiguous(), None, None)
    straight = straight - x[:, :511].double() @ matrix[:, :511].double().T
    assert turned.norm() < straight.norm() / 2


@pytest.mark.parametrize("side", [1, 2, 8, LARGEST_BLOCK])
def test_hadamard_matrices_are_orthogonal_and_symmetric(side: int) -> None:
    matrix = hadamard(side, CPU)
    torch.testing.assert_close(matrix @ matrix, torch.eye(side))
    assert torch.equal(matrix, matrix.T)
    assert matrix.abs().unique().numel() == 1


def test_the_block_divides_the_width() -> None:
    assert [rotation_block(width) for width in (3, 12, 96, 768)] == [1, 4, 32, 32]


def test_where_there_are_no_integers() -> None:
    assert "no integer product on meta" in why_no_integers(torch.device("meta"), 64)
    assert "multiple of 8" in why_no_integers(torch.device("cuda"), 65)
    assert not why_no_integers(torch.device("cuda"), 64)
