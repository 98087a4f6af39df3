"""Unpacks stored weights by plain operations, for ONNX, `torch.export` and `torch.jit.trace`.

The usual, fast code reinterprets bytes, gathers complex numbers and branches on sizes. An exported
graph cannot hold these operations. So the layers use this module while a graph is traced. This
module only looks up numbers in small tables and adds integers, in the same way for every batch
size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_rmt.nn.stores.codebooks import CODEBOOKS, SCALES, TRITS

MANTISSA = 2**23
POWERS = (0.0, *(2.0 ** (exponent - 127) for exponent in range(1, 255)), float("inf"))
"""For each value of the 8 exponent bits of a float32, the power of 2 for which it stands."""


def is_exporting() -> bool:
    """Whether torch is tracing a graph for export, to run the graph without this package."""
    exporting = getattr(torch.compiler, "is_exporting", lambda: False)
    return exporting() or torch.jit.is_tracing()


def plain_noise(
    kind: str, codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, shape: tuple[int, int]
) -> Tensor:
    """The noise of a packed `NoiseStore` as a float32 matrix.

    Args:
        kind: `int8`, `int4` or `ternary`.
        codes: The buffer `codes` of the store. The docstring of `NoiseStore` explains each buffer.
        fine: The buffer `fine` of the store.
        coarse: The buffer `coarse` of the store.
        base: The buffer `base` of the store.
        shape: Shape of the result, (out, in).
    """
    points = _table(CODEBOOKS[kind].points, codes).index_select(0, codes.to(torch.int32))
    nibbles = fine.to(torch.int32).view(len(coarse), -1)
    places = torch.cat([nibbles % 16, nibbles // 16], dim=1) + coarse.to(torch.int32)[:, None]
    scales = _table(SCALES, codes).index_select(0, places.flatten()) * _as_float(base)
    values = points.reshape(-1, CODEBOOKS[kind].group) * scales[:, None]
    return values.flatten()[: shape[0] * shape[1]].reshape(shape)


def plain_signs(codes: Tensor, shape: tuple[int, int]) -> Tensor:
    """The signs (-1, 0 or 1) of a ternary layer as a float32 matrix.

    Args:
        codes: `TernaryLinear.weight`, with five signs in a byte if this tensor has one dimension,
            and four signs in a byte if it has two dimensions.
        shape: Shape of the result, (out, in).
    """
    bytes_ = codes.flatten().to(torch.int32) % 256
    if codes.dim() == 1:
        signs = _table(TRITS, codes).index_select(0, bytes_).flatten()
    else:
        planes = torch.cat([bytes_ // 4**place % 4 for place in range(4)])
        signs = (planes - planes // 2 * 4).to(torch.float32)
    return signs[: shape[0] * shape[1]].reshape(shape)


def _as_float(bits: Tensor) -> Tensor:
    """Read the bits of a positive int32 as a float32, by plain operations that can be exported."""
    power = _table(POWERS, bits).index_select(0, bits // MANTISSA)
    return power * (1 + (bits % MANTISSA).to(torch.float32) / MANTISSA)


def _table(values: Sequence[object], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)
