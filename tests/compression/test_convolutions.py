"""Convolutions of a network that is no model of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.settings import NOISE_KINDS
from tests.huggingface.models import pictures, relative


def vgg() -> nn.Sequential:
    """Strong directions in the hidden layers, and a convolution in groups."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 40, 3, stride=2, padding="valid", bias=False),
        nn.BatchNorm2d(40),
        nn.Conv2d(40, 40, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(40, 40, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for layer in (model[2], model[4], model[8]):
            matrix = layer.weight.flatten(1)
            direction = torch.outer(torch.randn(len(matrix)), torch.randn(matrix.shape[1]))
            matrix += 0.5 * matrix.norm() * direction / direction.norm()
    return model.eval()


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_a_network_of_plain_torch(noise: str) -> None:
    model, x = vgg(), pictures()
    reference, bias = model(x), model[4].bias
    planned = hf_rmt.compress(model, RMTConfig(noise=noise), dry_run=True)
    assert torch.equal(model(x), reference)
    report = hf_rmt.compress(model, RMTConfig(noise=noise))
    assert [plan.name for plan in report.plan.compressed] == ["2", "4", "8"]
    assert [plan.bits for plan in planned.plan] == [plan.bits for plan in report.plan]
    assert any(plan.latency for plan in planned.timed().plan.compressed)
    assert model[2].bias is None
    assert model[4].bias is bias
    assert relative(model(x), reference) < {"keep": 1e-5, "int8": 0.02}.get(noise, 2.0)
    dense = hf_rmt.export_dense(model)
    assert (dense[4].padding, dense[4].padding_mode) == ("same", "reflect")
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_where_factors_would_be_larger_a_kernel_is_filtered_in_place(layout: Any) -> None:
    model = vgg().to(memory_format=layout)
    kernel = model[4].weight.detach().clone()
    config = RMTConfig(noise="drop", noise_removal=0.1, recover_spikes=False, target_modules=["4"])
    (plan,) = hf_rmt.compress(model, config).plan
    assert (plan.compressed, type(model[4])) == (False, nn.Conv2d)
    u, s, v = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    kept = s.clone()
    kept[len(s) - round(0.1 * (len(s) - plan.n_spikes)) :] = 0
    assert 0 < (kept == 0).sum() < len(s) / 2
    torch.testing.assert_close(model[4].weight.flatten(1), u * kept @ v, rtol=0, atol=1e-4)
