"""How long a compressed layer takes, measured against the dense one it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from hf_rmt.nn.spiked import SpikedLinear

REPEATS = 5
LARGEST_SIDE = 1024
"""Longer sides are measured at this length: the ratio hardly changes, time and memory do."""
BUDGET = 0.5
"""Seconds after which no further repeat is begun."""


@torch.no_grad()
def latency_ratio(
    shape: tuple[int, int],
    rank: int,
    noise: str,
    *,
    tokens: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> float:
    """Time of a compressed forward over that of the dense linear, measured now.

    Both run in turn, so that whatever else the machine does slows both. Sides longer than
    LARGEST_SIDE are measured at that length.

    Args:
        shape: (out_features, in_features).
        rank: Directions in the signal.
        noise: One of `NOISE_KINDS`.
        tokens: Rows of the input.
        dtype: Of the model.
        device: Where to measure.

    Returns:
        The ratio of the median times; below 1 the compressed layer is the faster one.

    Raises:
        ValueError: If the rank or the kind of noise is out of range.
    """
    out_features, in_features = (min(side, LARGEST_SIDE) for side in shape)
    if rank <= min(shape):  # else the layer below complains
        rank = min(rank, out_features, in_features)
    spiked = SpikedLinear(in_features, out_features, rank, noise=noise, device=device, dtype=dtype)
    dense = nn.Linear(in_features, out_features, device=device, dtype=dtype)
    x = torch.randn(tokens, in_features, device=device, dtype=dtype)
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


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
