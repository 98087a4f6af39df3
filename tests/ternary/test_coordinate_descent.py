from __future__ import annotations

from itertools import product

import torch

from hf_rmt.nn.stores.ternary_packing import ternarize
from hf_rmt.ternary.coordinate_descent import COLUMNS, descend, fitted_scales


def problem(outputs: int = 4, inputs: int = 2 * COLUMNS + 9) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(3 * inputs, inputs, generator=generator, dtype=torch.float64)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = x @ (mixing / inputs**0.5 + 0.5 * torch.eye(inputs))
    return weight, x.T @ x / len(x)


def error(
    signs: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, moment: torch.Tensor
) -> torch.Tensor:
    """Squared error of each output, by the formula."""
    gap = scales[:, None] * signs - weight
    return torch.einsum("oi,ij,oj->o", gap, moment, gap)


def test_no_change_of_one_entry_is_better() -> None:
    weight, moment = problem()
    signs, scales = descend(*ternarize(weight), weight, moment)
    assert signs.dtype == torch.int8
    best = error(signs, scales, weight, moment)
    for column, value in product(range(weight.shape[1]), (-1, 0, 1)):
        other = signs.clone()
        other[:, column] = value
        assert (error(other, scales, weight, moment) > best - 1e-9).all()
    z = torch.linalg.cholesky(moment).T @ signs.double().T  # columns with z'z = t' C t
    y = torch.linalg.cholesky(moment).T @ weight.T
    torch.testing.assert_close(scales, (z * y).sum(0) / z.square().sum(0))


def test_outputs_gain_over_rounding() -> None:
    weight, moment = problem()
    rounded, scales = ternarize(weight)
    scales = fitted_scales(rounded.double(), scales, weight @ moment, moment)
    before = error(rounded, scales, weight, moment).sum()
    assert error(*descend(rounded, scales, weight, moment), weight, moment).sum() < 0.6 * before


def test_white_inputs_ask_for_nothing_but_rounding() -> None:
    weight, _ = problem()
    signs, scales = ternarize(weight)
    found = descend(signs, scales, weight, torch.eye(weight.shape[1], dtype=torch.float64))
    assert torch.equal(found[0], signs)
    torch.testing.assert_close(found[1], scales)


def test_a_row_keeps_an_entry_and_its_dtype() -> None:
    weight = torch.tensor([[0.1, 0.0]])
    signs, scales = torch.tensor([[0, 1]], dtype=torch.int8), torch.tensor([1.0]).bfloat16()
    found = descend(signs, scales, weight, torch.eye(2, dtype=torch.float64))
    assert found[0].tolist() == [[0, 1]]
    assert found[1].dtype == torch.bfloat16
