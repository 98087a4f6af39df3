"""The Triton kernel against the noise that is unpacked; `test_fused.py` runs this file."""

from __future__ import annotations

import pytest
import torch

from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.layouts import set_layout
from hf_rmt.nn.layouts.choosing import possible
from hf_rmt.nn.stores.codebooks import CODEBOOKS

SHAPES = ((96, 64), (65, 33), (7, 130), (1, 1), (130, 7))


def layer_of(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> SpikedLinear:
    generator = torch.Generator().manual_seed(0)
    rank = min(2, *shape)
    left, right = (
        torch.randn(*side, generator=generator) for side in ((shape[0], rank), (rank, shape[1]))
    )
    weight, bias = (
        torch.randn(shape, generator=generator),
        torch.randn(shape[0], generator=generator),
    )
    return SpikedLinear.from_factors(left, right, weight, bias, noise=kind).to(dtype).eval()


@pytest.mark.parametrize("kind", CODEBOOKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 20), (0,)])
def test_forward(kind: str, dtype: torch.dtype, lead: tuple[int, ...]) -> None:
    for shape in SHAPES:
        layer = layer_of(kind, shape, dtype)
        assert set_layout(layer, "fused").startswith("layouts: 1 fused;")
        x = torch.randn(*lead, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
        expected = x.double() @ layer.dense().double().T + layer.bias.double()
        with torch.no_grad():
            result = layer(x)
        assert result.dtype == dtype
        assert result.shape == expected.shape
        error = (result.double() - expected).norm()
        allowed = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        assert error <= allowed * expected.norm()


def test_gradients() -> None:
    for kind in CODEBOOKS:
        layer, x = layer_of(kind, (24, 40), torch.float32), torch.randn(3, 40)
        wanted = torch.randn(3, 24)
        found = []
        for layout in ("packed", "fused"):
            set_layout(layer, layout)
            layer.zero_grad()
            entry = x.clone().requires_grad_()
            (layer(entry) * wanted).sum().backward()
            found.append((entry.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_layers_keep_nothing_and_are_never_chosen() -> None:
    layer = layer_of("int4", (64, 96), torch.float32)
    assert "fused" not in possible(layer, "int8")
    packed = set_layout(layer, "packed").partition("; ")[2]
    assert set_layout(layer, "fused").partition("; ")[2] == packed  # the same memory
