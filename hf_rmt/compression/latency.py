"""Measures the time of a compressed layer relative to the dense layer that it replaces."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.nn.dense_matrix import dense_shape
from hf_rmt.nn.layers.compressed_layer import compressed_like
from hf_rmt.plan import SPIKED

MIN_PAIRS, SETTLED_PAIRS, MAX_PAIRS = 4, 32, 100
"""Limits on the number of timed pairs. A pair is one call of the compressed layer and one of the
dense layer. At least `MIN_PAIRS` and at most `MAX_PAIRS` are timed, after one pair to warm up. From
`SETTLED_PAIRS` on, the measurement may end after each pair; see `AGREEMENT`."""
AGREEMENT = 1.1
"""A pair is one timed call of the compressed layer and one of the dense layer. The even pairs give
one ratio of the times, and the odd pairs another. The measurement ends when the two ratios differ
by at most this factor."""
TRUSTED = 2.0
"""The even and the odd pairs of timed calls give one time ratio each. If these still differ by
more than this factor at the end, the machine is too busy, and no ratio is returned. This factor is
larger than `AGREEMENT`, because the returned ratio comes from all pairs and is more precise."""
LARGEST_SIDE = 1024
"""Longer sides of a weight are cut to this length for the measurement. This hardly changes the
ratio, and saves time and memory. For a convolution, the limit holds for the number of channels
times the longer side of the kernel."""
BUDGET = 0.5
"""After this many seconds no further pair of calls is timed, except for the first `MIN_PAIRS`."""


_MEASURED: dict[Any, float] = {}
"""Time ratios that were already measured in this process, by the arguments of `latency_ratio`."""


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
    """The forward time of a compressed layer divided by the forward time of the dense layer.

    Both layers run in turn. The shortest time of each layer counts, because other work on the
    machine only adds time. Sides of the weight longer than `LARGEST_SIDE` are cut to this length.

    Args:
        shape: Shape of the weight: (out_features, in_features), or (out, in k_h k_w) for a
            convolution with kernels of height k_h and width k_w.
        rank: Rank of the signal, the low-rank part of the compressed weight.
        noise: How the noise, the rest of the weight, is stored; one of
            `hf_rmt.settings.NOISE_KINDS`.
        geometry: Arguments of the convolution, such as its stride, as `geometry_of` gives them;
            None for a linear layer.
        tokens: Number of rows of the input. For a convolution, the number of pixels of the output,
            in images of 8 x 8.
        dtype: The dtype of the model.
        device: The device on which to measure.

    Returns:
        The ratio of the shortest times; below 1 the compressed layer is faster. None if the times
        vary too much, for example because the machine is busy; see `TRUSTED`.

    Raises:
        ValueError: If the rank is out of range, or the kind of noise is unknown.
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
    if rank <= min(shape):  # else `compressed_like` below raises the error
        rank = min(rank, *dense_shape(dense))
    spiked = compressed_like(dense, SPIKED, rank, noise)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + BUDGET
    for pair in range(MAX_PAIRS + 1):
        times.append((_seconds(spiked, x), _seconds(dense, x)))
        if pair == 0:
            times.clear()  # the first pair only warms up
        elif pair >= MIN_PAIRS and (time.perf_counter() > end or _settled(times)):
            break
    return _ratio(times) if _disagreement(times) <= TRUSTED else None


def _settled(times: Sequence[tuple[float, float]]) -> bool:
    return len(times) >= SETTLED_PAIRS and _disagreement(times) <= AGREEMENT


def _disagreement(times: Sequence[tuple[float, float]]) -> float:
    """The factor, at least 1, by which two measured time ratios differ.

    A pair is one timed call of the compressed layer and one of the dense layer. The even pairs give
    one ratio of the two layers' times, and the odd pairs give the other.
    """
    even, odd = _ratio(times[::2]), _ratio(times[1::2])
    return max(even / odd, odd / even)


def _ratio(times: Sequence[tuple[float, float]]) -> float:
    spiked, dense = (min(column) for column in zip(*times, strict=True))
    return spiked / dense


def _measured(
    shape: tuple[int, int], geometry: Mapping[str, Any] | None, tokens: int
) -> tuple[nn.Module, Tensor]:
    """Make a dense layer with random weights, and a random input, for a measurement of time.

    Long sides of the weight are cut to `LARGEST_SIDE`. `geometry` has the arguments of a
    convolution; it is empty for a linear layer.
    """
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
