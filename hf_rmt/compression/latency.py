"""How long a compressed layer takes, measured against the dense one it replaces."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.nn.compressed_layer import compressed_like
from hf_rmt.nn.dense_matrix import dense_shape
from hf_rmt.plan import SPIKED

MIN_PAIRS, SETTLED_PAIRS, MAX_PAIRS = 4, 32, 100
"""Pairs of calls, one of either layer: made even beyond the budget, made before the halves are
held against each other, made at most. One pair more comes first, to warm up."""
AGREEMENT = 1.1
"""Once the ratio by one half of the pairs is that by the other up to this factor, it stands."""
TRUSTED = 2.0
"""If after all pairs it is not even up to this, the machine is too busy for a measurement. The
ratio by all pairs is closer than that by either half."""
LARGEST_SIDE = 1024
"""Longer sides are measured at this length: the ratio hardly changes, time and memory do. Of a
convolution it bounds channels times the longer side of the kernel."""
BUDGET = 0.5
"""Seconds after which no further pair is begun."""


_MEASURED: dict[Any, float] = {}
"""What was measured in this process: one shape, rank, store, dtype and device has one answer."""


def latency_ratio(
    shape: tuple[int, int],
    rank: int,
    noise: str,
    *,
    geometry: Mapping[str, Any] | None = None,
    tokens: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> float | None:
    """Time of a compressed forward over that of the dense layer, measured now.

    Both run in turn, and the shortest times of each count: what else the machine does only adds
    to them. Sides longer than LARGEST_SIDE are measured at that length.

    Args:
        shape: (out_features, in_features), for a convolution (out, in k_h k_w).
        rank: Directions in the signal.
        noise: One of `NOISE_KINDS`.
        geometry: What a convolution is made with, as `geometry_of` gives it; None for a linear.
        tokens: Rows of the input; of a convolution pixels of its output, in squares of 64.
        dtype: Of the model.
        device: Where to measure.

    Returns:
        The ratio of the shortest times; below 1 the compressed layer is the faster one. None if
        every other pair of calls tells another ratio, as where a busy machine leaves no call
        undisturbed.

    Raises:
        ValueError: If the rank or the kind of noise is out of range.
    """
    key = (shape, rank, noise, str(geometry), tokens, dtype, str(device))
    if key not in _MEASURED:
        found = _measure(shape, rank, noise, geometry or {}, tokens, dtype, device)
        if found is None:
            return None
        _MEASURED[key] = found
    return _MEASURED[key]


@torch.no_grad()
def _measure(
    shape: tuple[int, int],
    rank: int,
    noise: str,
    geometry: Mapping[str, Any],
    tokens: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> float | None:
    dense, x = _measured(shape, geometry, tokens)
    dense, x = dense.to(device, dtype), x.to(device, dtype)
    if rank <= min(shape):  # else the layer below complains
        rank = min(rank, *dense_shape(dense))
    spiked = compressed_like(dense, SPIKED, rank, noise)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + BUDGET
    for pair in range(MAX_PAIRS + 1):
        times.append((_seconds(spiked, x), _seconds(dense, x)))
        if pair == 0:
            times.clear()  # it warmed up
        elif pair >= MIN_PAIRS and (time.perf_counter() > end or _settled(times)):
            break
    return _ratio(times) if _disagreement(times) <= TRUSTED else None


def _settled(times: Sequence[tuple[float, float]]) -> bool:
    return len(times) >= SETTLED_PAIRS and _disagreement(times) <= AGREEMENT


def _disagreement(times: Sequence[tuple[float, float]]) -> float:
    """How much larger the ratio is by every other pair than by those between, or smaller."""
    even, odd = _ratio(times[::2]), _ratio(times[1::2])
    return max(even / odd, odd / even)


def _ratio(times: Sequence[tuple[float, float]]) -> float:
    spiked, dense = (min(column) for column in zip(*times, strict=True))
    return spiked / dense


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


def _seconds(layer: nn.Module, x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    layer(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
