from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_rmt.compression.calibration.error_feedback import feed_back
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from hf_rmt.nn.stores.noise_store import NoiseStore


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


def nearest(kind: str, values: Tensor) -> Tensor:
    """The nearest codes: trits, or points of the spiral for two weights at a time."""
    if kind == "ternary":
        return values.round().clamp(-1, 1)
    book = CODEBOOKS[kind]
    return book.decode(book.encode(values.float()).flatten()).view(-1, 2).double()


def naive(store: NoiseStore, weight: Tensor, moment: Tensor) -> Tensor:
    """Round column after column, each time moving the open ones to their best given the fixed."""
    joint = 2 if store.kind == "int4" else 1
    group = CODEBOOKS[store.kind].group
    scales = store.group_scales().repeat_interleave(group)[: weight.numel()]
    scales, rest = scales.view(weight.shape).double(), weight.double().clone()
    energies = moment.diagonal().view(-1, joint).sum(1)
    order = torch.argsort(energies, descending=True, stable=True).tolist()
    left = [joint * first + k for first in order for k in range(joint)]
    while left:
        here, left = left[:joint], left[joint:]
        chosen = nearest(store.kind, rest[:, here] / scales[:, here]) * scales[:, here]
        error = rest[:, here] - chosen
        rest[:, here] = chosen
        if left:
            # of |(e, d) C^{1/2}|^2 over the moves d of the open columns
            inner, beside = moment[left][:, left], moment[left][:, here]
            rest[:, left] += error @ torch.linalg.solve(inner, beside).T
    return rest


@pytest.mark.parametrize("kind", ["ternary", "int4"])
def test_each_column_is_rounded_with_the_others_at_their_best(kind: str) -> None:
    weight, moment = problem(columns=80)
    store = stored(kind, weight)
    expected = naive(store, weight, moment)
    feed_back(store, weight, moment)
    same = (store.dense().double() - expected).abs() < 1e-5
    assert same.float().mean() > 0.99  # float32 breaks ties otherwise


@pytest.mark.parametrize(("kind", "factor"), [("int8", 0.6), ("int4", 0.6), ("ternary", 0.6)])
@pytest.mark.parametrize(("columns", "rows"), [(40, 24), (130, 24), (40, 23), (41, 24), (65, 3)])
def test_the_error_that_counts_falls(kind: str, factor: float, columns: int, rows: int) -> None:
    weight, moment = problem(columns, rows)
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
