from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_rmt.compression.apply import with_rounding
from hf_rmt.compression.calibration.calibrated_weight import (
    check_calibratable,
    compress_calibrated_weight,
)
from hf_rmt.compression.calibration.low_rank import INPUT_DAMPING, LayerMoments, damped, low_rank
from hf_rmt.compression.weight import compress_weight
from hf_rmt.settings import CompressionSettings

SVD = CompressionSettings(method="svd", rank=6, noise="drop", min_size=1)


def problem(rows: int = 48, columns: int = 40) -> tuple[Tensor, LayerMoments]:
    """A weight with three spikes, and inputs that are strong along other directions."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    for size in (6.0, 5.0, 4.0):
        u, v = torch.randn(rows, generator=generator), torch.randn(columns, generator=generator)
        weight += size * torch.outer(u / u.norm(), v / v.norm())
    rotation = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    inputs = torch.randn(300, columns, generator=generator) * torch.logspace(-1.5, 0.7, columns)
    inputs = inputs @ rotation
    mean = torch.randn(columns, generator=generator)
    return weight, LayerMoments(inputs.T @ inputs / 300, mean=mean)


def loss(error: Tensor, excitation: LayerMoments) -> float:
    error = error.detach().double()
    return float(((error @ excitation.inputs.double()) * error).sum())


def test_factors_are_the_best_of_the_weighted_weight() -> None:
    weight, excitation = problem()
    result = compress_calibrated_weight("layer", weight, SVD, excitation)
    values, vectors = torch.linalg.eigh(damped(excitation.inputs, INPUT_DAMPING))
    root = vectors * values.sqrt() @ vectors.T
    u, s, vh = torch.linalg.svd(weight.double() @ root)
    expected = u[:, :6] * s[:6] @ vh[:6] @ torch.linalg.inv(root)
    assert result.build.left is not None
    assert result.build.right is not None
    torch.testing.assert_close(
        result.build.left @ result.build.right, expected.float(), atol=1e-4, rtol=1e-4
    )
    assert result.plan.rank == 6
    assert result.mean_input is excitation.mean
    lost = (weight - expected).square().sum() / weight.square().sum()
    assert result.plan.dropped_energy == pytest.approx(float(lost), rel=1e-3)


def test_the_law_says_how_many_directions_and_the_inputs_which() -> None:
    weight, excitation = problem()
    settings = CompressionSettings(noise="drop")
    plain = compress_weight("layer", weight, settings)
    result = compress_calibrated_weight("layer", weight, settings, excitation)
    assert result.plan.rank == plain.plan.rank == plain.plan.n_spikes == result.plan.n_spikes
    assert result.build.recovery is None
    assert plain.build.recovery is not None
    errors = [weight - part.layer(weight).dense() for part in (result, plain)]
    assert loss(errors[0], excitation) < 0.95 * loss(errors[1], excitation)


@pytest.mark.parametrize("noise", ["drop", "int8", "int4", "ternary"])
def test_the_signal_energy_is_that_of_the_stored_factors(noise: str) -> None:
    weight, excitation = problem()
    result = compress_calibrated_weight("a", weight, CompressionSettings(noise=noise), excitation)
    layer = result.layer(weight)
    left, right = (factor.detach().double() for factor in layer.factors())
    stored = (left @ right).square().sum() / weight.double().square().sum()
    plan = with_rounding(result, weight, layer)
    assert plan.signal_energy == pytest.approx(float(stored), rel=1e-5)


def test_a_rank_takes_the_place_of_what_the_method_finds() -> None:
    weight, excitation = problem()
    settings = CompressionSettings(noise="drop")
    assert compress_calibrated_weight("a", weight, settings, excitation, rank=9).plan.rank == 9


def test_directions_that_no_input_excites_leave_the_factors_finite() -> None:
    weight, _ = problem()
    inputs = torch.zeros(40, 40)
    inputs[0, 0] = 1.0
    result = compress_calibrated_weight("layer", weight, SVD, LayerMoments(inputs))
    dense = result.layer(weight).dense()
    assert torch.isfinite(dense).all()
    torch.testing.assert_close(dense[:, 0], weight[:, 0], atol=0.02, rtol=0.02)


def test_factors_larger_than_the_weight_become_a_dense_one() -> None:
    weight, excitation = problem()
    settings = CompressionSettings(method="svd", rank=30, noise="drop")
    result = compress_calibrated_weight("layer", weight, settings, excitation)
    assert not result.plan.compressed
    assert result.rewritten is not None
    plain = compress_weight("layer", weight, settings).rewritten
    assert plain is not None
    assert torch.linalg.matrix_rank(result.rewritten, rtol=1e-4) == 30
    assert loss(weight - result.rewritten, excitation) < loss(weight - plain, excitation)


@pytest.mark.parametrize(("noise", "factor"), [("int8", 0.8), ("int4", 0.6), ("ternary", 0.6)])
def test_packed_noise_and_signal_lose_less_output_at_the_same_bits(
    noise: str, factor: float
) -> None:
    weight, excitation = problem()
    settings = CompressionSettings(noise=noise)
    plain = compress_weight("layer", weight, settings)
    result = compress_calibrated_weight("layer", weight, settings, excitation)
    assert result.plan.bits == plain.plan.bits
    assert result.plan.dropped_energy == 0
    layers = [part.layer(weight) for part in (result, plain)]
    lost = [loss(weight - layer.dense(), excitation) for layer in layers]
    assert lost[0] < factor * lost[1]
    rest = weight - layers[0].noise.dense()
    left, right = low_rank(rest, layers[0].rank, excitation)
    error = torch.linalg.vector_norm(
        layers[0].dense().detach() - layers[0].noise.dense() - left @ right
    )
    assert error < 2**-8 * torch.linalg.vector_norm(left @ right)  # bfloat16 is right to 2^-9
    stored = layers[0].weight
    assert torch.equal(stored, stored.to(torch.bfloat16).float())


def test_packed_noise_without_signal_is_calibrated_too() -> None:
    weight, excitation = problem()
    settings = CompressionSettings(noise="int4", max_rank=0)
    plain = compress_weight("layer", weight, settings).layer(weight)
    layer = compress_calibrated_weight("layer", weight, settings, excitation).layer(weight)
    assert layer.rank == 0
    assert loss(weight - layer.dense(), excitation) < 0.6 * loss(weight - plain.dense(), excitation)


def test_a_weight_that_stays_dense_is_left_alone() -> None:
    weight, excitation = problem()
    settings = CompressionSettings(noise="drop", min_size=64)
    result = compress_calibrated_weight("layer", weight, settings, excitation)
    assert result.mean_input is None
    assert "min_size" in result.plan.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": "keep"}, "loses nothing"),
        ({"noise": "drop", "recover_spikes": True}, "recover_spikes=True"),
        (
            {"noise": "drop", "method": "magnitude", "fraction": 0.5},
            "'magnitude' sets entries",
        ),
    ],
)
def test_settings_that_calibration_cannot_serve_are_refused(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_calibratable(CompressionSettings(**options))
