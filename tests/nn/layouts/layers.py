"""Layers with every store in every layout, and how far their outputs may be off."""

from __future__ import annotations

import torch
from torch import nn

from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.layouts import set_layout

OUT, IN, RANK = 96, 640, 3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(noise: str, dtype: torch.dtype = torch.float32, *, rank: int = RANK) -> SpikedLinear:
    weight = normal(OUT, IN) + 2 * normal(OUT, rank, seed=1) @ normal(rank, IN, seed=2)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * v[:rank]
    bias = nn.Parameter(normal(OUT, seed=3).to(dtype))
    parts = (part.to(dtype) for part in (left, right, weight))
    return SpikedLinear.from_factors(*parts, bias, noise=noise).eval()


def placed(noise: str, name: str, dtype: torch.dtype = torch.float32) -> SpikedLinear:
    layer = layer_of(noise, dtype)
    set_layout(layer, name)
    return layer


def allowed(layer: SpikedLinear, x: torch.Tensor) -> torch.Tensor:
    """Bound on the root mean square error of a layer's outputs, by its rounding.

    Factors, sums and outputs round by eps of |x| |W|, a few times. Integers add, for noise of size
    n and an input of size |x|: inputs rounded to 1 / 127 of their largest entry (3.5 standard
    deviations after the rotation, 5 bounds it) and weights to 1 / 127 of the row's, uniform errors
    of variance 1 / 12; on processors with digits of 6 bits twice as much for the inputs.
    """
    length = x.double().norm(dim=-1, keepdim=True)
    rows = layer.dense().double().square().sum(1).mean().sqrt()
    bound = 3 * torch.finfo(x.dtype).eps * (length * rows + 1)
    if layer.layout == "int8":
        noise = layer.noise.dense(torch.float64)
        size = noise.square().mean().sqrt() * length
        bound = bound + size * 5 / 127 / 12**0.5 * 5**0.5
    return bound


def distance(ours: torch.Tensor, exact: torch.Tensor) -> float:
    ours, exact = ours.detach().double(), exact.detach().double()
    return float((ours - exact).norm() / exact.norm())
