"""Codebooks that store Gaussian noise in bytes: a byte stands for one, two or five weights.

The weights of a byte are the coordinates of a point. Noise can be rounded like Gaussian numbers if
its singular values are distributed as those of a random matrix. So the points have the optimal
density for a Gaussian. Formulas give the points, so they are the same on every machine. Groups of
neighbouring weights share a scale, and the coordinates are weights divided by this scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.constants import constant

SCALE_STEP = 8
"""Number of scale codes per factor of 2, so that a scale is rounded in steps of 9 %. This causes
almost no error, because the codes of the weights are chosen after the scale is rounded."""
RUN = 16
"""Number of groups in a run. A group is some neighbouring weights with one scale; the groups of a
run share a coarse scale code, see `FINE_CODES`."""
FINE_CODES = 16
"""Number of fine scale codes, so that a nibble (4 bits) holds one. The scale code of a group is
the coarse code of its run plus its own fine code."""
CUBIC = 0.3
"""Curvature of the 8-bit levels c (1 + CUBIC (c / 128)^2) for c from -128 to 127. It is close to
the best value for groups of 8 Gaussians, and the best value for the heavier tails of trained
weights."""
SPIRAL_MASS = 0.85
"""Share of a Gaussian's probability inside the spiral of the 4-bit points. This value is best for
groups of 16, because their scale adapts to weights outside of the spiral."""
LEVEL_CELLS = 2**14
CELLS = 256
"""The range of the 8-bit levels is cut into LEVEL_CELLS equal cells, and a square around the spiral
into CELLS x CELLS. A table holds the nearest point for each cell."""


@dataclass(frozen=True)
class Codebook:
    """A codebook: how a group of weights, which share a scale, becomes bytes.

    Attributes:
        points: The values of the bytes, which are weights divided by their scale: for each byte one
            number, or a tuple of `block` numbers.
        block: Number of weights per byte.
        group: Number of weights per scale, `8 * block`, so that the codes of a group are 8 bytes.
        largest: True if the search for the scale starts from the group's largest absolute entry,
            False if it starts from the group's root mean square.
        unit: Scale at the start of the search, divided by this largest entry or root mean square.
        offsets: Codes (indices in `SCALES`) of the scales that are tried, relative to the code of
            the scale at the start.
        encode: Converts weights divided by their scale, shape (n, group), to bytes, shape (n, group
            / block).
        decode: Converts the bytes back to weights divided by their scale, flat float32.
        joint: Number of weights that must be rounded together; 1 if each can be rounded alone.
        cubic: If given, the points are c + cubic c^3 with c = byte - 128, in float32. To compute
            such points takes less time than to look them up. None if there is no such formula.
    """

    points: Sequence[Any] = field(repr=False)
    block: int
    group: int
    largest: bool
    unit: float
    offsets: range
    encode: Callable[[Tensor], Tensor] = field(repr=False)
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    joint: int = 1
    cubic: float | None = None
    cells: Callable[[], Tensor] | None = field(default=None, repr=False)

    @property
    def run(self) -> int:
        """Number of weights in a run, which is RUN groups of weights with one scale each.

        Packing works on whole runs.
        """
        return RUN * self.group

    @property
    def run_bytes(self) -> int:
        """Bytes of the codes of a run, which is RUN groups of weights with one scale each."""
        return self.run // self.block


SCALES = tuple(2.0 ** (-code / SCALE_STEP) for code in range(256))
"""Scale divided by the largest scale, for each scale code."""
LEVELS = tuple(c * (1 + CUBIC * (c / 128) ** 2) for c in range(-128, 128))
LEVEL_FACTOR = LEVEL_CELLS / (LEVELS[-1] - LEVELS[0])
"""Number of cells per unit of the levels."""
TRITS = tuple(tuple(code // 3**k % 3 - 1.0 for k in range(5)) for code in range(243))
"""The five trits (-1, 0 or 1) of each of the 243 bytes, least significant first."""


def _spiral() -> tuple[tuple[float, float], ...]:
    """The 256 pairs of weights that the bytes of `int4` stand for, as points on a spiral.

    Each point is turned by the golden angle from the point before. The density of the points is
    proportional to the square root of the Gaussian density. The first point is the origin, so that
    zeros stay zeros. Coordinates are rounded to 2^-12, so that they do not depend on the
    mathematics library.
    """
    golden = math.pi * (3 - math.sqrt(5))
    points = []
    for k in range(256):
        radius = 2 * math.sqrt(-math.log1p(-SPIRAL_MASS * k / 256))
        x, y = radius * math.cos(k * golden), radius * math.sin(k * golden)
        points.append((round(x * 4096) / 4096, round(y * 4096) / 4096))
    return tuple(points)


SPIRAL = _spiral()
HALF_WIDTH = 1.05 * max(abs(x) for point in SPIRAL for x in point)
SPIRAL_FACTOR = CELLS / 2 / HALF_WIDTH
"""Number of cells per unit of the spiral points."""

_TABLES: dict[tuple[int, torch.device], Tensor] = {}


def table(
    values: Sequence[object], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor of constants, made once per device.

    Args:
        values: The constants, nested in the shape of the tensor. The object must never be freed,
            because its `id` identifies the tensor.
        device: Device of the tensor.
        dtype: Dtype of the tensor, which must always be the same for the same object.

    Returns:
        The tensor, which must not be changed.
    """
    if torch.compiler.is_compiling():
        return torch.tensor(values, device=device, dtype=dtype)
    key = id(values), device
    if key in _TABLES:
        return _TABLES[key]
    with torch.inference_mode(False):
        made = torch.tensor(values, device=device, dtype=dtype)
    if type(made) is Tensor:  # when a program is traced, tensors may have no values
        _TABLES[key] = made
    return made


@constant
def _nearest_level() -> Tensor:
    """For each cell of the range of `LEVELS`, the index of the level nearest to the middle.

    The levels are the values of the 8-bit codes. There are LEVEL_CELLS equal cells.
    """
    levels = table(LEVELS, torch.device("cpu"))
    cells = torch.arange(LEVEL_CELLS, device="cpu") + 0.5
    middles = levels[0] + cells * (levels[-1] - levels[0]) / LEVEL_CELLS
    return torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def _encode_levels(values: Tensor) -> Tensor:
    # Looking the cell up is fifty times as fast as a binary search among the levels.
    scaled = (values - LEVELS[0]).mul_(LEVEL_FACTOR)
    cell = scaled.clamp_(0, LEVEL_CELLS - 1).to(torch.int32)
    nearest = _nearest_level().to(values.device)
    return nearest.index_select(0, cell.flatten()).view(cell.shape)


@cache
def _level_pairs() -> tuple[tuple[float, float], ...]:
    """The two values of `LEVELS` for each pair of 8-bit codes.

    The pairs of bytes are in their order as little-endian numbers.
    """
    return tuple((low, high) for high in LEVELS for low in LEVELS)


def _decode_levels(codes: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the large table would become part of the program
        return table(LEVELS, codes.device).index_select(0, codes.to(torch.int32))
    return _gather_pairs(_level_pairs(), codes.view(torch.uint16))


def _gather_pairs(values: Sequence[object], index: Tensor) -> Tensor:
    # Each pair is gathered as one complex number. This is several times as fast as gathering rows
    # of two numbers, or twice as many single numbers.
    pairs = torch.view_as_complex(table(values, index.device))
    return torch.view_as_real(pairs.index_select(0, index.to(torch.int32))).flatten()


@constant
def _nearest() -> Tensor:
    """For each cell of a square, row by row, the index of the nearest point of `SPIRAL`.

    The square has CELLS x CELLS cells and contains the points. A point is the pair of weights that
    a byte of `int4` stands for.
    """
    with torch.device("cpu"):
        axis = ((torch.arange(CELLS) + 0.5) / CELLS * 2 - 1) * HALF_WIDTH
        points = table(SPIRAL, axis.device)
        norms = points.square().sum(1)
        rows = [
            ((torch.stack([x.expand(CELLS), axis], 1) @ points.T) * 2 - norms).argmax(1)
            for x in axis
        ]
        return torch.stack(rows).to(torch.uint8).flatten()


def _encode_spiral(values: Tensor) -> Tensor:
    scaled = values * SPIRAL_FACTOR + CELLS / 2
    cell = scaled.clamp_(0, CELLS - 1).to(torch.int32).view(len(values), -1, 2)
    index = cell[..., 0] * CELLS + cell[..., 1]
    nearest = _nearest().to(values.device)
    return nearest.index_select(0, index.flatten()).view(index.shape)


def _decode_spiral(codes: Tensor) -> Tensor:
    return _gather_pairs(SPIRAL, codes)


def _encode_trits(values: Tensor) -> Tensor:
    trits = values.round().clamp_(-1, 1).add_(1).to(torch.uint8).view(len(values), -1, 5)
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=values.device)
    return (trits * powers).sum(-1, dtype=torch.uint8)


def _decode_trits(codes: Tensor) -> Tensor:
    return table(TRITS, codes.device).index_select(0, codes.to(torch.int32)).flatten()


CODEBOOKS = {
    "int8": Codebook(
        points=LEVELS,
        block=1,
        group=8,
        largest=True,
        unit=1 / (127 * (1 + CUBIC)),
        offsets=range(-2, 1),
        encode=_encode_levels,
        decode=_decode_levels,
        cubic=CUBIC / 128**2,
        cells=_nearest_level,
    ),
    "int4": Codebook(
        points=SPIRAL,
        block=2,
        group=16,
        largest=False,
        unit=1.0,
        offsets=range(-4, 5),
        encode=_encode_spiral,
        decode=_decode_spiral,
        joint=2,
        cells=_nearest,
    ),
    "ternary": Codebook(
        points=TRITS,
        block=5,
        group=40,
        largest=False,
        unit=2**0.3,
        offsets=range(-2, 3),
        encode=_encode_trits,
        decode=_decode_trits,
    ),
}
"""The codebook of each packed kind of noise. Per weight, codes take 8, 4 and 1.6 bits, and scales
take 9/16, 9/32 and 9/80 bits."""
