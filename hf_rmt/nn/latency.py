"""How long a compressed layer takes, measured against the dense one it replaces."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.nn.matrices import matrix_shape, spiked_like

REPEATS = 5
LARGEST_SIDE = 1024
"""Longer sides are measured at this length: the ratio hardly changes, time and memory do. Of a
convolution it bounds channels times the longer side of the kernel."""
BUDGET = 0.5
"""Seconds after which no further repeat is begun."""


@torch.no_grad()
def latency_ratio(
    shape: tuple[int, int],
    rank: int,
    noise: str,
    *,
    geometry: Mapping[str, Any] | None = None,
    tokens: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> float:
    """Time of a compressed forward over that of the dense layer, measured now.

    Both run in turn, so that whatever else the machine does slows both. Sides longer than
    LARGEST_SIDE are measured at that length.

    Args:
        shape: (out_features, in_features), for a convolution (out, in k_h k_w).
        rank: Directions in the signal.
        noise: One of `NOISE_KINDS`.
        geometry: What a convolution is made with, as `geometry_of` gives it; None for a linear.
        tokens: Rows of the input; of a convolution pixels of its output, in squares of 64.
        dtype: Of the model.
        device: Where to measure.

    Returns:
        The ratio of the median times; below 1 the compressed layer is the faster one.

    Raises:
        ValueError: If the rank or the kind of noise is out of range.
    """
    dense, x = _measured(shape, geometry, tokens)
    dense, x = dense.to(device, dtype), x.to(device, dtype)
    if rank <= min(shape):  # else the layer below complains
        rank = min(rank, *matrix_shape(dense))
    spiked = spiked_like(dense, rank, noise)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + BUDGET
    for repeat in range(REPEATS + 1):
        for kept, layer in zip(times, (spiked, dense), strict=True):
            elapsed = _seconds(lambda layer=layer: layer(x), x.device)  # type: ignore[misc]
            if repeat:  # the first warms up
                kept.append(elapsed)
        if times[0] and time.perf_counter() > end:
            break
    return median(times[0]) / median(times[1])


def _measured(
    shape: tuple[int, int], geometry: Mapping[str, Any] | None, tokens: int
) -> tuple[nn.Module, Tensor]:
    """The dense layer that is measured, and its input."""
    if not geometry:
        out_features, in_features = (min(side, LARGEST_SIDE) for side in shape)
        return nn.Linear(in_features, out_features), torch.randn(tokens, in_features)
    kernel = geometry["kernel_size"]
    most = max(1, LARGEST_SIDE // max(kernel))
    outputs, inputs = min(shape[0], most), min(shape[1] // math.prod(kernel), most)
    dense = nn.Conv2d(inputs, outputs, **geometry)
    steps = zip(kernel, dense.stride, dense.dilation, strict=True)
    sides = [7 * stride + dilation * (size - 1) + 1 for size, stride, dilation in steps]
    return dense, torch.randn(-(-tokens // 64), inputs, *sides)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
