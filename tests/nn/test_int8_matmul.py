from __future__ import annotations

import pytest
import torch

from hf_rmt.nn.int8_matmul import ENTRIES_AT_ONCE, integer_linear, runs_on_integers


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def setup(tokens: int, inputs: int, outputs: int) -> tuple[torch.Tensor, ...]:
    signs = torch.randint(-1, 2, (outputs, inputs), generator=torch.Generator().manual_seed(1))
    scales = torch.rand(outputs, generator=torch.Generator().manual_seed(2)) + 0.5
    return normal(tokens, inputs), signs.to(torch.int8), scales, normal(outputs, seed=3)


def rounding(x: torch.Tensor, digits: int) -> torch.Tensor:
    """Half a unit of the last digit, for each row."""
    unit = x.abs().amax(1, keepdim=True).double() / (127 * 254.0 ** (digits - 1))
    return unit / 2


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 33, ENTRIES_AT_ONCE // 384 + 5])
@pytest.mark.parametrize("biased", [True, False])
def test_error_is_that_of_the_digits(digits: int, tokens: int, biased: bool) -> None:
    x, signs, scales, bias = setup(tokens, 384, 40)
    result = integer_linear(x, signs, scales, bias if biased else None, digits=digits)
    exact = x.double() @ (signs.double() * scales.double()[:, None]).T + (bias * biased).double()
    # Each of the 384 entries is off by at most half a unit: 4 sigma of the sum of uniforms, plus
    # the float32 rounding of entries and sums.
    bound = rounding(x, digits) * (384 / 3) ** 0.5 * 5 * scales + 60 * torch.finfo().eps
    assert ((result - exact).abs() < bound).all()
    assert digits == 3 or (result - exact).abs().max() > bound.mean() / 50


def test_three_digits_are_as_exact_as_float32() -> None:
    x, signs, scales, bias = setup(64, 1000, 64)
    exact = x.double() @ (signs.double() * scales.double()[:, None]).T + bias.double()
    floats = torch.nn.functional.linear(x, signs * scales[:, None], bias)
    integers = integer_linear(x, signs, scales, bias, digits=3)
    assert (integers - exact).square().mean() < 2 * (floats - exact).square().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, signs, scales, bias = (t if t.dtype == torch.int8 else t.to(dtype) for t in setup(5, 64, 40))
    result = integer_linear(x, signs, scales, bias, digits=2)
    assert result.dtype == dtype
    exact = x.double() @ (signs.double() * scales.double()[:, None]).T + bias.double()
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=3e-3)


def test_zeros_extremes_and_the_longest_row() -> None:
    x = torch.zeros(3, 2**16)
    x[1], x[2] = 1e20, -1e-20
    signs = torch.ones(32, 2**16, dtype=torch.int8)
    result = integer_linear(x, signs, torch.ones(1), None, digits=2)
    expected = torch.tensor([0.0, 1e20 * 2**16, -1e-20 * 2**16])[:, None].expand(3, 32)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


def test_a_row_with_nan_or_inf_spoils_itself_alone() -> None:
    x, signs, scales, bias = setup(3, 64, 32)
    x[0, 3], x[2, 5] = float("nan"), float("inf")
    result = integer_linear(x, signs, scales, bias, digits=3)
    assert not result[[0, 2]].isfinite().any()
    assert result[1].isfinite().all()


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, shape = torch.zeros(2, 384), (384, 384)
    monkeypatch.setattr("hf_rmt.nn.int8_matmul._vnni", lambda: True)
    assert runs_on_integers(x, shape)
    assert not runs_on_integers(x.double(), shape)
    assert not runs_on_integers(x.to("meta"), shape)
    assert not runs_on_integers(x, (2, 384))
    assert not runs_on_integers(x, (384, 2**16 + 1))
    monkeypatch.setattr("hf_rmt.nn.int8_matmul._vnni", lambda: False)
    assert not runs_on_integers(x, shape)
