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


def test_the_error_of_outputs_that_do_not_vary_is_the_mean_square() -> None:
    x, y = torch.randn(50, 4), torch.ones(50, 2)
    assert sums(x, y).error(torch.zeros(2, 4), torch.tensor([1.0, 1.5])) == pytest.approx(0.25)
