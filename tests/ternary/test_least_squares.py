"""The error of a layer from sums over samples."""

from __future__ import annotations

import pytest
import torch

from tests.ternary.test_weight import sums


@pytest.mark.parametrize("biased", [True, False])
def test_the_error_is_that_of_the_samples(biased: bool) -> None:
    torch.manual_seed(0)
    x, y, weight = torch.randn(200, 7) + 1, torch.randn(200, 3) * 2 + 5, torch.randn(3, 7)
    bias = torch.randn(3) if biased else None
    given = x @ weight.T + (bias if biased else 0)
    expected = (y - given).square().sum() / (y - y.mean(0)).square().sum()
    halves = sums(x[:80], y[:80]) + sums(x[80:], y[80:])
    assert halves.error(weight, bias) == pytest.approx(float(expected), rel=1e-4)
    nothing = torch.zeros(3, 7)
    assert halves.error(nothing, y.mean(0)) == pytest.approx(1, rel=1e-4)


def test_an_offset_of_outputs_and_bias_leaves_the_error() -> None:
    torch.manual_seed(0)
    x, y, weight = (
        each.double() for each in (torch.randn(200, 7), torch.randn(200, 3), torch.randn(3, 7))
    )
    expected = sums(x, y).error(weight, torch.zeros(3))
    found = sums(x, y + 1e5).error(weight, torch.full((3,), 1e5))
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_error_of_outputs_that_do_not_vary_is_the_mean_square() -> None:
    x, y = torch.randn(50, 4), torch.ones(50, 2)
    assert sums(x, y).error(torch.zeros(2, 4), torch.tensor([1.0, 1.5])) == pytest.approx(0.25)
