"""A new kind of noise store needs a codebook and its name, as docs/extend.md says."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import Tensor, nn

import hf_rmt
from hf_rmt.nn.counterparts import compressed_layers
from hf_rmt.nn.layouts.fused import FusedLayout
from hf_rmt.nn.stores.codebooks import CODEBOOKS, Codebook
from hf_rmt.nn.stores.export_ops import plain_noise
from hf_rmt.settings import CompressionSettings
from tests.nn.stores.filled import filled, gaussian

LEVELS = (-1.5, -0.5, 0.5, 1.5)


def encode(values: Tensor) -> Tensor:
    codes = values.add(2).floor().clamp(0, 3).to(torch.uint8).view(len(values), -1, 4)
    return (codes * torch.tensor([64, 16, 4, 1], dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def decode(codes: Tensor) -> Tensor:
    parts = [codes.flatten() // power % 4 for power in (64, 16, 4, 1)]
    return torch.tensor(LEVELS)[torch.stack(parts, 1).int()].flatten()


INT2 = Codebook(
    points=tuple(itertools.product(LEVELS, repeat=4)),
    block=4,
    group=32,
    largest=False,
    unit=1.0,
    offsets=range(-3, 4),
    encode=encode,
    decode=decode,
)


@pytest.fixture(autouse=True)
def int2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODEBOOKS, "int2", INT2)
    for module in [part for name, part in sys.modules.items() if name.startswith("hf_rmt")]:
        for names in ("NOISE_KINDS", "PACKED_KINDS"):
            if names in vars(module):
                monkeypatch.setattr(module, names, (*getattr(module, names), "int2"))


def test_its_codes_are_unpacked_alike_by_every_way() -> None:
    weight = gaussian(30, 48)
    store = filled("int2", weight)
    dense = store.dense()
    assert float((dense - weight).square().mean()) < 0.14  # four levels, best 0.118 for a Gaussian
    graph = plain_noise("int2", store.codes, store.fine, store.coarse, store.base, (30, 48))
    torch.testing.assert_close(graph, dense, rtol=1e-6, atol=0)
    assert torch.equal(store.rows(3, 9), dense[3:9])


@pytest.mark.parametrize("calibrated", [False, True])
def test_compress_stores_noise_in_it(calibrated: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 80), nn.Linear(80, 64))
    batches = [{"input": torch.randn(64, 96)}] if calibrated else None
    settings = CompressionSettings(noise="int2", target_modules="all-linear")
    report = hf_rmt.compress(model, settings, calibration=batches)
    assert [plan.noise for plan in report.plan.compressed] == ["int2", "int2"]
    assert 2 < report.plan.bits_per_weight < 6
    for layer in compressed_layers(model).values():
        x = torch.randn(5, layer.in_features)
        expected = nn.functional.linear(x, layer.dense(), layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert "decodes int8, int4, ternary" in FusedLayout.refusal(layer)
