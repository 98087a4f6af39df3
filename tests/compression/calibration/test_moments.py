from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_rmt.compression.calibration.moments import Moments


class Offset(nn.Module):
    """A layer that is given inputs near 1000, in batches of unlike means."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_mean_far_above_the_spread_costs_no_digits(bias: bool) -> None:
    """Inputs near 1000 are rounded to 6e-5 in float32, which is 1e-3 of their spread."""
    torch.manual_seed(0)
    model = Offset(bias=bias)
    parts = [1000 + n * 0.1 + 0.05 * torch.randn(40, 5) for n in range(4)]
    moments = Moments(model, {"layer": ["layer"]}, gradients=False)
    moments.gather([{"x": part} for part in parts])
    found = moments.measured_moments()["layer"]
    inputs = torch.cat(parts).double()
    if not bias:
        expected = (inputs.T @ inputs / len(inputs)).float()
        torch.testing.assert_close(found.inputs, expected, rtol=1e-6, atol=0)
        return
    assert found.mean is not None
    assert found.inputs.dtype == found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean, inputs.mean(0).float(), rtol=1e-7, atol=0)
    expected = torch.cov(inputs.T, correction=0).float()
    torch.testing.assert_close(found.inputs, expected, rtol=1e-4, atol=1e-7)
