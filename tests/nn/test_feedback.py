from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_rmt.nn.feedback import feed_back
from hf_rmt.nn.noise import NoiseStore


def problem(columns: int = 40, rows: int = 24) -> tuple[Tensor, Tensor]:
    """A weight, and a second moment whose columns go along with one another."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mixed = torch.randn(columns, columns // 4, generator=generator, dtype=torch.float64)
    return weight, mixed @ mixed.T + 0.1 * torch.eye(columns, dtype=torch.float64)


def stored(kind: str, weight: Tensor) -> NoiseStore:
    store = NoiseStore(kind, *weight.shape)
    store.store(weight)
    return store


def loss(store: NoiseStore, weight: Tensor, moment: Tensor) -> float:
    error = (weight - store.dense()).double()
    return float(((error @ moment) * error).sum())


def naive(store: NoiseStore, weight: Tensor, moment: Tensor, levels: Tensor) -> Tensor:
    """Round column after column, each time moving the open ones to their best given the fixed."""
    scales = store._scales(0, len(store.coarse)).repeat_interleave(40)[: weight.numel()]
    scales, rest = scales.view(weight.shape).double(), weight.double().clone()
    left = torch.argsort(moment.diagonal(), descending=True, stable=True).tolist()
    while left:
        column = left.pop(0)
        value = rest[:, column] / scales[:, column]
        chosen = levels[(value[:, None] - levels).abs().argmin(1)] * scales[:, column]
        error = rest[:, column] - chosen
        rest[:, column] = chosen
        if left:
            # of |(e, d) C^{1/2}|^2 over the moves d of the open columns
            inner = moment[left][:, left]
            rest[:, left] += torch.outer(error, torch.linalg.solve(inner, moment[left, column]))
    return rest


def test_each_column_is_rounded_with_the_others_at_their_best() -> None:
    weight, moment = problem(columns=80)
    store = stored("ternary", weight)
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    expected = naive(store, weight, moment, levels)
    feed_back(store, weight, moment)
    same = (store.dense().double() - expected).abs() < 1e-5
    assert same.float().mean() > 0.995  # float32 breaks ties otherwise


@pytest.mark.parametrize(("kind", "factor"), [("int8", 0.6), ("int4", 0.6), ("ternary", 0.6)])
@pytest.mark.parametrize("columns", [40, 130])
def test_the_error_that_counts_falls(kind: str, factor: float, columns: int) -> None:
    weight, moment = problem(columns)
    store = stored(kind, weight)
    before, scales = loss(store, weight, moment), store.fine.clone()
    feed_back(store, weight, moment)
    assert loss(store, weight, moment) < factor * before
    assert torch.equal(store.fine, scales)


@pytest.mark.parametrize("kind", ["int8", "int4", "ternary"])
def test_inputs_without_correlation_ask_for_the_nearest_codes(kind: str) -> None:
    weight, _ = problem()
    store = stored(kind, weight)
    codes = store.codes.clone()
    feed_back(store, weight, torch.diag(torch.arange(1.0, 41.0, dtype=torch.float64)))
    assert torch.equal(store.codes, codes)


def test_codes_that_lie_across_two_rows_stay() -> None:
    weight, moment = problem(columns=41)
    store = stored("int4", weight)
    codes = store.codes.clone()
    feed_back(store, weight, moment)
    assert torch.equal(store.codes, codes)
