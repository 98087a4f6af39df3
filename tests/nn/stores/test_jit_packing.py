"""Noise packed by compiled code: the same codes as torch's, for any weights and threads."""

from __future__ import annotations

import pytest
import torch

from hf_rmt.nn import NoiseStore
from hf_rmt.nn.stores import jit_packing, packing
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from hf_rmt.nn.stores.packing import summed
from tests.nn.stores.filled import filled, gaussian

pytest.importorskip("numba", reason="needs the extra `fast`")


def weights() -> dict[str, torch.Tensor]:
    """Weights that are ordinary, uneven, nearly empty, tiny, and on the borders of the cells."""
    plain = gaussian(37, 530)
    sparse = torch.where(gaussian(37, 530, seed=1).abs() > 2.5, plain, torch.zeros(()))
    levels = torch.arange(-128, 128).repeat(64).view(64, 256) / 128
    return {
        "plain": plain,
        "uneven": plain * torch.logspace(0, -9, 37)[:, None],
        "sparse": sparse,
        "zero": torch.zeros(37, 530),
        "tiny": plain * 1e-30,
        "levels": levels,
        "wide dtype": plain.double(),
        "narrow dtype": plain.bfloat16(),
        "one": torch.ones(1, 1),
    }


def tensors(store: NoiseStore) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in store.state_dict().items()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", CODEBOOKS)
@pytest.mark.parametrize("name", weights())
def test_codes_are_those_of_torch(
    name: str, kind: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, before = weights()[name], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = tensors(filled(kind, weight))
        monkeypatch.setattr(packing, "packer", None)
        by_torch = tensors(filled(kind, weight))
    finally:
        torch.set_num_threads(before)
    assert compiled.keys() == by_torch.keys()
    for key, tensor in by_torch.items():
        assert torch.equal(compiled[key], tensor), key


def test_a_large_weight_is_shared_out_over_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, before = [], torch.get_num_threads()
    share = jit_packing.shared_out
    monkeypatch.setattr(
        jit_packing, "shared_out", lambda *each: (asked.append(each[1:]), share(*each))
    )
    weight = gaussian(2048, 1024)
    torch.set_num_threads(2)
    try:
        compiled = tensors(filled("int4", weight))
    finally:
        torch.set_num_threads(before)
    assert asked
    monkeypatch.setattr(packing, "packer", None)
    assert torch.equal(compiled["codes"], tensors(filled("int4", weight))["codes"])


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_weights_on_the_cpu_are_packed_under_any_default_device(kind: str) -> None:
    weight = gaussian(37, 53)
    store, wanted = NoiseStore(kind, *weight.shape), tensors(filled(kind, weight))
    with torch.device("meta"):
        store.store(weight)
    assert all(map(torch.equal, tensors(store).values(), wanted.values()))


@pytest.mark.parametrize("width", [1, 5, 8, 16, 40])
def test_sums_do_not_depend_on_the_layout_of_the_rows(width: int) -> None:
    rows = gaussian(100, width)
    torch.testing.assert_close(summed(rows), rows.sum(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(summed(rows), summed(rows.T.contiguous().T))
    assert torch.equal(summed(rows)[:7], summed(rows[:7]))
