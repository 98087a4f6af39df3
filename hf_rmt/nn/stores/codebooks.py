"""Codebooks: tables that say for which weights each byte stands, when noise is stored in bytes.

Noise is a weight minus its low-rank signal, see `NoiseStore`. Each group of neighbouring weights is
divided by its scale. Then a byte stands for one, two or five weights, which are the coordinates of
a point. The points are chosen so that Gaussian numbers can be rounded to them with little error.
This suits noise whose singular values are distributed as those of a random matrix. Formulas give
the points, so they are the same on every machine.
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
"""Each group of weights has a scale, which is stored as a code. This many codes cover a factor of
2, so scales are rounded in steps of 9 %. This causes almost no error, because the codes of the
weights are chosen after the scale is rounded."""
RUN = 16
"""Number of groups in a run. A group is some neighbouring weights with one scale. The groups of a
run share a coarse scale code, see `FINE_CODES`."""
FINE_CODES = 16
"""Number of fine scale codes, so that 4 bits hold one. A group is some neighbouring weights with
one scale, and a run is `RUN` groups. The code of the scale is the coarse code of the run plus the
fine code of the group."""
CUBIC = 0.3
"""In the format `int8`, the byte c + 128 stands for the number (level) c (1 + CUBIC (c / 128)^2),
for c from -128 to 127. So large levels are further apart. The value is close to the best one for
groups of 8 Gaussian numbers, and is the best one for trained weights, of which more are large."""
SPIRAL_MASS = 0.85
"""A byte of the format `int4` stands for two weights, the coordinates of a point on a spiral. This
is the probability that two independent Gaussian numbers of variance 2 lie inside the spiral. The
value is the best one for groups of 16 weights, whose scale adapts to weights outside."""
LEVEL_CELLS = 2**14
CELLS = 256
"""Numbers of cells in the tables that speed up rounding. A table holds for each cell the nearest
of the points for which codes stand. The range of the levels of `int8`, see `LEVELS`, is cut into
`LEVEL_CELLS` equal cells, and a square around the spiral of `int4` into `CELLS` x `CELLS`."""


@dataclass(frozen=True)
class Codebook:
    """A codebook: how a group of weights, which share a scale, becomes bytes.

    A search finds the scale of a group. It tries several scales, and keeps the one with the least
    error. The scale itself is stored as a code.

    Attributes:
        points: The values of the bytes, which are weights divided by their scale: for each byte one
            number, or a tuple of `block` numbers.
        block: Number of weights per byte.
        group: Number of weights per scale, `8 * block`, so that the codes of a group are 8 bytes.
        largest: True if the search for the scale starts from the group's largest absolute entry,
            False if it starts from the group's root mean square.
        unit: Scale at the start of the search, divided by the largest absolute entry or the root
            mean square of the group, depending on `largest`.
        offsets: Codes (indices in `SCALES`) of the scales that are tried, relative to the code of
            the scale at the start.
        encode: Converts weights divided by their scale, shape (n, group), to bytes, shape (n, group
            / block).
        decode: Converts the bytes back to weights divided by their scale, flat float32.
        joint: Number of weights that must be rounded together; 1 if each can be rounded alone.
        cubic: If given, the points are c + cubic c^3 with c = byte - 128, in float32. To compute
            such points takes less time than to look them up. None if there is no such formula.
        cells: Makes the table with which `encode` finds the nearest point; None if it uses none.
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
        """Number of weights in a run, which is `RUN` groups of weights with one scale each.

        Packing works on whole runs.
        """
        return RUN * self.group

    @property
    def run_bytes(self) -> int:
        """Number of bytes for the weights of a run: `RUN` groups of weights with one scale each."""
        return self.run // self.block


SCALES = tuple(2.0 ** (-code / SCALE_STEP) for code in range(256))
"""For each of the 256 codes of a scale: the scale divided by the largest scale of the weight."""
LEVELS = tuple(c * (1 + CUBIC * (c / 128) ** 2) for c in range(-128, 128))
LEVEL_FACTOR = LEVEL_CELLS / (LEVELS[-1] - LEVELS[0])
"""Number of cells (see `CELLS`) per unit of length on the axis of the 8-bit levels, `LEVELS`."""
TRITS = tuple(tuple(code // 3**k % 3 - 1.0 for k in range(5)) for code in range(243))
"""For each of the 243 bytes of the format `ternary`, the five numbers (-1, 0 or 1) for which it
stands. They are the digits of the byte in base 3, minus 1, the least significant first."""


def _spiral() -> tuple[tuple[float, float], ...]:
    """The 256 pairs of weights that the bytes of `int4` stand for, as points on a spiral.

    `int4` is a kind of `NoiseStore`. Each point is turned by the golden angle from the point
    before. The density of the points is proportional to the square root of the Gaussian density.
    The first point is the origin, so that zeros stay zeros. Coordinates are rounded to multiples of
    2^-12, so that they do not depend on the mathematics library.
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
"""Number of cells (see `CELLS`) per unit of length on both axes of the plane of the spiral."""

_TABLES: dict[tuple[int, torch.device], Tensor] = {}


def table(
    values: Sequence[object], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor of constants, made once per device.

    Args:
        values: The constants, nested in the shape of the tensor. This object must never be freed,
            because the tensor is found again by the `id` of the object.
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
    """A table that rounds numbers to `LEVELS`, the values of the 8-bit codes.

    The range of the levels is cut into `LEVEL_CELLS` equal cells. For each cell, the table holds
    the index of the level that is nearest to the middle of the cell.
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
    """A table that decodes two 8-bit codes at once: for each pair of bytes, their two values.

    The entry at the index low + 256 high is (LEVELS[low], LEVELS[high]), where `LEVELS` are the
    values of the codes.
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
    """A table that rounds pairs of weights to points of `SPIRAL`.

    A pair of weights is a point in the plane. In `int4` each of the 256 bytes stands for one point
    of `SPIRAL`. A square around all points is cut into `CELLS` x `CELLS` cells. For each cell, row
    by row, the table holds the index of the point that is nearest to the middle of the cell.
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
"""How each packed format stores noise; see `NoiseStore`. Per weight, the codes of `int8`, `int4`
and `ternary` take 8, 4 and 1.6 bits, and the scales take 9/16, 9/32 and 9/80 bits."""
