"""Weights whose entries are too large or too small for a store."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_rmt.compression.apply import compress_shared
from hf_rmt.compression.weight import compress_weight
from hf_rmt.plan import Cause, Outcome
from hf_rmt.settings import NOISE_KINDS, CompressionSettings
from hf_rmt.spectra.ensembles import double_bulk_matrix


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    spikes = (60.0, 40.0, 25.0)
    matrix = double_bulk_matrix((200, 120), mixing=0.4, variances=(3.0, 1.0), spikes=spikes, seed=3)
    return torch.from_numpy(matrix).float()


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e-40),
        (torch.float32, 1e-44),
        (torch.float64, 1e-150),
        (torch.float64, 1e150),
        (torch.float64, 1e39),
    ],
)
def test_a_weight_beyond_the_scales_of_a_store_stays_dense(
    weight: torch.Tensor, noise: str, dtype: torch.dtype, scale: float
) -> None:
    scaled = (weight.double() * scale).to(dtype)
    result = compress_weight("layer", scaled, CompressionSettings(noise=noise))
    assert result.fit.n_spikes == 3
    if noise in ("keep", "drop"):
        assert result.plan.compressed
        assert torch.isfinite(result.layer(scaled).dense()).all()
        return
    assert (result.plan.outcome, result.plan.cause) == (Outcome.KEPT, Cause.NOT_STORABLE)
    assert "the scales of noise=" in result.plan.reason


def test_rounding_errors_too_small_for_a_store_leave_a_layer_dense() -> None:
    """Beside a low rank of 1e-33 the noise is its rounding error, 1e-39."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((128, 4), (4, 64)))
    result = compress_weight(
        "layer", 1e-33 * left @ right, CompressionSettings(method="svd", rank=4)
    )
    assert result.plan.cause == Cause.NOT_STORABLE


def test_a_model_with_one_subnormal_weight_is_compressed() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64))
    with torch.no_grad():
        model[0].weight.mul_(1e-40)
    plan = compress_shared(model, ["0", "1"], CompressionSettings(method="svd", rank=4)).plan
    assert [layer.compressed for layer in plan] == [False, True]
