from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_rmt.compression.apply import compress_shared
from hf_rmt.nn import SpikedLinear
from hf_rmt.settings import NOISE_KINDS, CompressionSettings
from hf_rmt.spectra.ensembles import double_bulk_matrix, marchenko_pastur_matrix
from tests.compression.decisions import decide


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_the_plan_counts_the_bits_that_are_stored(weight: torch.Tensor, noise: str) -> None:
    result = decide(weight, noise=noise)
    layer = result.layer(weight)
    packed = noise in ("ternary", "int4", "int8")
    factors = layer.weight.numel() * (16 if packed else 32)
    buffers = sum(buffer.nbytes * 8 for buffer in layer.buffers())
    assert result.plan.compressed
    assert result.plan.bits == factors + buffers


def test_dropping_keeps_the_recovered_spikes_alone(weight: torch.Tensor) -> None:
    result = decide(weight, noise="drop")
    dense = result.layer(weight).dense()
    singular = torch.linalg.svdvals(weight.double())
    kept = torch.linalg.svdvals(dense.double())
    assert result.plan.rank == 3
    assert (kept[:3] < singular[:3]).all()
    assert (kept[3:] < 1e-5 * kept[0]).all()


RECOVERY = [None, True, False]


@pytest.mark.parametrize("recover", RECOVERY)
@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_the_energies_are_those_of_the_tensors(
    weight: torch.Tensor, noise: str, recover: bool | None
) -> None:
    model = nn.ModuleDict({"layer": nn.Linear(120, 200, bias=False)})
    model["layer"].weight.data.copy_(weight)
    settings = CompressionSettings(noise=noise, recover_spikes=recover)
    (plan,) = compress_shared(model, ["layer"], settings).plan
    left, right = (factor.detach().double() for factor in model["layer"].factors())
    whole = weight.double().square().sum()
    stored = (left @ right).square().sum() / whole
    error = (weight.double() - model["layer"].dense().detach()).square().sum() / whole
    s = torch.linalg.svdvals(weight.double())
    shrunk = recover is True or (recover is None and noise == "drop")
    kept = s[: plan.rank].clone()
    if shrunk:
        kept = torch.from_numpy(decide(weight).fit.spikes[: plan.rank] ** 0.5)
    taken = (s[: plan.rank] - kept).square().sum() + (noise == "drop") * s[
        plan.rank :
    ].square().sum()
    assert plan.signal_energy == pytest.approx(float(stored), rel=1e-5)
    assert plan.dropped_energy == pytest.approx(float(taken / whole), rel=1e-4, abs=1e-9)
    # the rest of the error is rounding, which is nearly orthogonal to what was taken
    rest = float(error) - plan.dropped_energy
    assert (plan.rounding_error or 0.0) == pytest.approx(rest, rel=0.05, abs=1e-6)


def test_dropping_without_recovery_is_the_truncated_svd(weight: torch.Tensor) -> None:
    dense = decide(weight, noise="drop", recover_spikes=False).layer(weight).dense()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(dense, u[:, :3] * s[:3] @ vh[:3], rtol=0, atol=1e-4)


def test_a_part_of_the_noise_is_dropped_smallest_first(weight: torch.Tensor) -> None:
    result = decide(weight, noise="drop", noise_removal=0.9, recover_spikes=False)
    stays = round(0.1 * (120 - 3))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    rank = 3 + stays
    assert result.plan.rank == rank
    dense = result.layer(weight).dense()
    torch.testing.assert_close(dense, u[:, :rank] * s[:rank] @ vh[:rank], rtol=0, atol=1e-4)


def test_where_factors_would_be_larger_the_weight_is_filtered_in_place(
    weight: torch.Tensor,
) -> None:
    model = nn.Sequential(nn.Linear(120, 200))
    model[0].weight.data.copy_(weight)
    settings = CompressionSettings(noise="drop", noise_removal=0.2, recover_spikes=False)
    (plan,) = compress_shared(model, ["0"], settings).plan
    assert not plan.compressed
    assert plan.dropped_energy > 0
    rank = int(torch.linalg.matrix_rank(model[0].weight.double(), rtol=1e-5))
    assert rank == 3 + round(0.8 * (120 - 3))


def test_nothing_is_lost_when_noise_is_kept(weight: torch.Tensor) -> None:
    dense = decide(weight, noise="keep").layer(weight).dense()
    torch.testing.assert_close(dense, weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("noise", "worst"), [("int8", 0.01), ("int4", 0.12), ("ternary", 0.6)])
def test_coarser_noise_is_a_larger_error(weight: torch.Tensor, noise: str, worst: float) -> None:
    dense = decide(weight, noise=noise).layer(weight).dense().detach()
    error = float((dense - weight).norm() / weight.norm())
    assert worst / 4 < error < worst


def test_max_rank_keeps_the_largest_spikes(weight: torch.Tensor) -> None:
    result = decide(weight, noise="drop", max_rank=1, recover_spikes=False)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    assert (result.plan.rank, result.plan.n_spikes) == (1, 3)
    dense = result.layer(weight).dense()
    torch.testing.assert_close(dense, u[:, :1] * s[:1] @ vh[:1], rtol=0, atol=1e-4)


def test_a_layer_that_would_not_shrink_stays_dense(weight: torch.Tensor) -> None:
    result = decide(weight.to(torch.bfloat16), noise="drop", noise_removal=0.0)
    assert not result.plan.compressed
    assert "dense is smaller" in result.plan.reason
    assert result.rewritten is None


def test_a_dense_layer_has_no_module(weight: torch.Tensor) -> None:
    result = decide(torch.zeros(50, 50))
    with pytest.raises(ValueError, match="the matrix is zero"):
        result.layer(torch.zeros(50, 50))


def test_bias_and_mode_are_taken_over(weight: torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(120, 200)).eval()
    model[0].weight.data.copy_(weight)
    bias, x = model[0].bias, torch.randn(4, 120)
    expected = model(x)
    compress_shared(model, ["0"], CompressionSettings(noise="keep"))
    assert isinstance(model[0], SpikedLinear)
    assert model[0].bias is bias
    assert not model[0].training
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def two_spikes(fraction: float) -> torch.Tensor:
    """200 x 200 noise, a direction with this fraction of the energy, a stronger one above."""
    noise = torch.from_numpy(marchenko_pastur_matrix((200, 200), variance=1.0, seed=5)).float()
    u, s, vh = torch.linalg.svd(noise)
    s[1] = torch.sqrt(s[2:].square().sum() * fraction / (1 - fraction))
    s[0] = 3 * s[1]
    return u * s @ vh


@pytest.mark.parametrize(("noise", "fair"), [("int4", 1 / 4), ("ternary", 1 / 4)])
def test_a_spike_is_stored_where_it_returns_its_fair_part(noise: str, fair: float) -> None:
    """A direction with fraction f of the energy left saves -log2(1 - f) / 2 bits a weight."""
    border = 1 - 2 ** (-2 * fair * 16 * 400 / 200**2)
    assert decide(two_spikes(1.1 * border), noise=noise).plan.rank == 2
    assert decide(two_spikes(0.9 * border), noise=noise).plan.rank == 1


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({"noise": "int4"}, 1),
        ({"noise": "int4", "stored_spikes": "all"}, 2),
        ({"noise": "keep"}, 2),
        ({"noise": "drop"}, 2),
    ],
)
def test_all_spikes_are_stored_when_asked_for_or_not_packed(
    settings: dict[str, object], rank: int
) -> None:
    plan = decide(two_spikes(0.04), **settings).plan
    assert (plan.rank, plan.n_spikes) == (rank, 2)


@pytest.mark.parametrize(("noise", "tolerance"), [("keep", 1e-4), ("int8", 0.01)])
def test_spikes_can_be_recovered_beside_stored_noise(
    weight: torch.Tensor, noise: str, tolerance: float
) -> None:
    result = decide(weight, noise=noise, recover_spikes=True)
    dense = result.layer(weight).dense().detach()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    s[:3] = torch.from_numpy(result.fit.spikes**0.5)
    torch.testing.assert_close(
        dense, u * s @ vh, rtol=0, atol=tolerance * float(weight.abs().max())
    )


def test_eight_bit_noise_stores_spikes_up_to_a_ninth_of_the_directions() -> None:
    spikes = tuple(float(value) for value in range(40, 20, -1))
    many = double_bulk_matrix((200, 120), mixing=0.4, variances=(3.0, 1.0), spikes=spikes, seed=0)
    weight = torch.from_numpy(many).float()
    result = decide(weight)
    assert result.plan.n_spikes == 20
    assert result.plan.rank == 120 // 9
    assert decide(weight, stored_spikes="all").plan.rank == 20


def test_a_weight_of_pure_noise_is_not_dropped_whole() -> None:
    noise = torch.from_numpy(marchenko_pastur_matrix((120, 80), variance=1.0, seed=1)).float()
    result = decide(noise, noise="drop")
    assert (result.plan.compressed, result.plan.dropped_energy) == (False, 0.0)
    assert "no signal stands out" in result.plan.reason
    assert result.rewritten is None
