"""What the methods other than `pdb` decide on one weight."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hf_rmt.compression.weight import compress_weight
from hf_rmt.plan import Outcome
from hf_rmt.settings import CompressionSettings
from tests.compression.decisions import decide


@pytest.mark.parametrize("options", [{"rank": 7}, {"fraction": 7 / 120}])
def test_svd_is_the_truncated_svd(weight: torch.Tensor, options: dict[str, float]) -> None:
    result = decide(weight, method="svd", noise="drop", **options)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    dense = result.layer(weight).dense()
    torch.testing.assert_close(dense, u[:, :7] * s[:7] @ vh[:7], rtol=0, atol=1e-4)
    assert (result.plan.rank, result.plan.parameters) == (7, 7 * 320)
    assert result.plan.upper_edge is None
    assert result.build.recovery is None


def test_svd_beside_stored_noise_stores_every_direction_asked_for(weight: torch.Tensor) -> None:
    result = decide(weight, method="svd", rank=30)
    assert (result.plan.rank, result.plan.noise) == (30, "int8")
    dense = result.layer(weight).dense().detach()
    assert float((dense - weight).norm() / weight.norm()) < 0.01


@pytest.mark.parametrize("method", ["bema", "kernel"])
def test_a_unit_bulk_recovers_its_spikes(weight: torch.Tensor, method: str) -> None:
    result = decide(weight, method=method, noise="drop")
    dense = result.layer(weight).dense().detach().double()
    singular = torch.linalg.svdvals(dense)[: result.plan.rank].numpy()
    assert result.plan.rank == result.fit.n_spikes >= 3
    assert result.plan.upper_edge == result.fit.upper_edge
    assert singular**2 == pytest.approx(result.fit.spikes, rel=1e-4)


def test_slr_counts_the_entries_that_are_left(weight: torch.Tensor) -> None:
    result = decide(weight, method="slr", noise="drop", rank=8)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    left, right = u[:, :8] * s[:8].sqrt(), s[:8].sqrt()[:, None] * vh[:8]
    left[weight.abs().sum(1).argsort()[:100], 4:] = 0
    right[4:, weight.abs().sum(0).argsort()[:60]] = 0
    expected = left @ right
    dense = result.layer(weight).dense().detach()
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-4)
    assert (result.plan.compressed, result.plan.rank) == (True, 8)
    assert result.plan.nonzero == result.plan.parameters == 8 * 320 * 3 // 4
    assert result.plan.bits == 8 * 320 * 32
    lost = float((weight - expected).square().sum() / weight.square().sum())
    assert result.plan.dropped_energy == pytest.approx(lost, rel=1e-4)


def test_slr_of_full_rank_filters_in_place(weight: torch.Tensor) -> None:
    result = decide(weight, method="slr", noise="drop", fraction=1.0)
    assert not result.plan.compressed
    assert result.plan.dropped_energy > 0
    assert result.rewritten is not None
    assert result.plan.nonzero == int(result.rewritten.count_nonzero())


@pytest.mark.parametrize("method", ["magnitude", "uniform"])
def test_pruning_zeroes_entries_in_place(weight: torch.Tensor, method: str) -> None:
    result = decide(weight, method=method, noise="drop", fraction=0.4)
    assert (result.plan.outcome, result.build) == (Outcome.REWRITTEN, None)
    kept = result.rewritten != 0
    assert int(kept.sum()) == result.plan.nonzero == result.plan.parameters == round(0.4 * 24000)
    assert torch.equal(result.rewritten[kept], weight[kept])
    energy = float(weight[kept].double().square().sum() / weight.double().square().sum())
    assert result.plan.dropped_energy == pytest.approx(1 - energy, abs=1e-9)
    assert result.plan.signal_energy == pytest.approx(energy, abs=1e-9)
    assert result.plan.bits == result.plan.dense_bits
    assert "zeros save no memory" in result.plan.reason


def test_uniform_pruning_depends_on_seed_and_layer_alone(weight: torch.Tensor) -> None:
    def mask(name: str, seed: int) -> torch.Tensor:
        settings = CompressionSettings(method="uniform", noise="drop", fraction=0.5, seed=seed)
        return compress_weight(name, weight, settings).rewritten != 0

    assert torch.equal(mask("a", 0), mask("a", 0))
    assert not torch.equal(mask("a", 0), mask("b", 0))
    assert not torch.equal(mask("a", 0), mask("a", 1))
    ones = torch.ones(40, 40) + torch.eye(40)
    settings = CompressionSettings(method="uniform", noise="drop", fraction=0.5)
    here = compress_weight("a", ones, settings).rewritten.nonzero().flatten().tolist()
    script = """
import torch
from hf_rmt.compression.weight import compress_weight
from hf_rmt.settings import CompressionSettings
settings = CompressionSettings(method="uniform", noise="drop", fraction=0.5)
ones = torch.ones(40, 40) + torch.eye(40)
print(compress_weight("a", ones, settings).rewritten.nonzero().flatten().tolist())
"""
    arguments = [sys.executable, "-c", script]
    there = subprocess.run(arguments, capture_output=True, check=True, text=True)
    assert there.stdout.strip() == str(here)


def test_a_dict_names_the_layers_and_what_each_loses(weight: torch.Tensor) -> None:
    settings = {"noise": "drop", "noise_removal": {"layer": 0.9}, "recover_spikes": False}
    assert decide(weight, **settings).plan.rank == 3 + round(0.1 * (120 - 3))
    other = compress_weight("other", weight, CompressionSettings(**settings))
    assert (other.plan.compressed, other.fit, other.rewritten) == (False, None, None)
    assert "names other layers" in other.plan.reason
    assert (other.plan.bits, other.plan.parameter_share) == (other.plan.dense_bits, 1.0)
