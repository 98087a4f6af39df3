"""A matrix of 8-bit integers, one scale per row, and its product with inputs in integer digits.

A row x of inputs is written as x = u (d_1 + d_2 / (2 t) + ...), with integer digits d_1, d_2, ...
in [-t, t]. Here u is the largest absolute entry of x, divided by t, and t is `TOP` (127) or
`NARROW` (63). The sums of products of digits are exact, so the only errors are the rounding of the
last digit and that of the weights.
"""

from __future__ import annotations

import threading
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_rmt.nn.constants import constant
from hf_rmt.nn.int8_matmul import ENTRIES_AT_ONCE, SMALLEST
from hf_rmt.nn.layouts.locks import usable_after_fork

TOP = 127
"""Largest integer to which a weight is rounded, and largest digit of an input."""
NARROW = 63
"""Largest digit of an input on processors (AVX2) that add two products of bytes in 16 bits, where
products of larger digits could overflow."""
LARGEST_BLOCK = 32
"""Largest side of the matrices, see `hadamard`, that rotate neighbouring inputs to spread
outliers."""
CUDA_ROWS, CUDA_MULTIPLE = 17, 8
"""The integer product of cuBLAS needs at least CUDA_ROWS rows, and a number of columns that is a
multiple of CUDA_MULTIPLE."""

FBGEMM = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
"""The product of fbgemm, an integer library in torch. It takes the inputs, their scale, their
zero point and the packed weight, and returns float32 after one pass over the inputs."""

_ENGINE_LOCK = usable_after_fork(threading.Lock())


class IntegerWeight:
    """A matrix rounded to 8-bit integers, with one scale per row.

    Args:
        matrix: float32, shape (out, in); it is not changed.
        digits: How many 8-bit integers (digits) hold one input of `product`. With 1, the inputs and
            the matrix are first multiplied by an orthogonal matrix, which spreads outliers.
    """

    def __init__(self, matrix: Tensor, *, digits: int = 1) -> None:
        self.digits = digits
        self.shape: tuple[int, int] = (matrix.shape[0], matrix.shape[1])
        self.at_once = max(32, ENTRIES_AT_ONCE // max(self.shape))
        self.block = rotation_block(matrix.shape[1]) if digits == 1 else 1
        matrix = self._rotated(matrix)
        scales = matrix.abs().amax(1).clamp_min_(SMALLEST).div_(TOP)
        integers = (matrix / scales[:, None]).round_().to(torch.int8)
        self.engine = _engine(matrix.device)
        self.packed: Any = None
        if self.engine == "fbgemm":
            self.packed = _prepacked(integers, scales)
        else:
            self.integers, self.scales = integers, scales
        self.top = NARROW if self.engine == "fbgemm" and saturates() else TOP
        # FBGEMM can round its inputs to multiples of a step. So for one digit it gets inputs in
        # [-1, 1], and no operation has to scale them to [-top, top].
        self.step = 1 / self.top if self.engine == "fbgemm" and digits == 1 else 1.0

    def product(
        self, rows: Tensor, factors: tuple[Tensor, Tensor] | None, bias: Tensor | None
    ) -> Tensor:
        """Return `rows @ (first @ second + W') + bias`; W' is the transpose of this matrix.

        The product is computed for a few rows at a time.

        Args:
            rows: Shape (tokens, in), of any floating dtype.
            factors: Low-rank factors (first, second) of shapes (in, rank) and (rank, out) in
                float32, or None.
            bias: Shape (out,) in float32, or None.

        Returns:
            Shape (tokens, out), float32.
        """
        if rows.shape[0] <= self.at_once:  # len takes a microsecond longer
            if rows.dtype != torch.float32:
                rows = rows.to(torch.float32)
            return self._product(rows, factors, bias)
        result = rows.new_empty(len(rows), self.shape[0], dtype=torch.float32)
        for start in range(0, len(rows), self.at_once):
            here = slice(start, start + self.at_once)
            result[here] = self._product(rows[here].to(torch.float32), factors, bias)
        return result

    def _product(
        self, rows: Tensor, factors: tuple[Tensor, Tensor] | None, bias: Tensor | None
    ) -> Tensor:
        """The result of `product` for a few rows in float32.

        The code uses few operations, because each takes 3 us or more. It divides each row by a
        unit, rounds it, multiplies it by the transposed matrix, and multiplies the product by the
        unit. The unit of a row is proportional to its largest absolute entry. A row of zeros has
        the unit 0: its integers are arbitrary but finite, so its result is 0.
        """
        total = _signal(rows, factors, bias)
        rows = self._rotated(rows)
        if rows.shape[0] == 1 and factors and self.digits == 1 and self.packed is not None:
            # Without factors, a nan could get lost in the integers.
            try:
                one = torch.ops.quantized.linear_dynamic(rows, self.packed, self.top == NARROW)
                return one if total is None else total.add_(one)
            except RuntimeError:  # nan and inf have no integers; the code below passes them on
                pass
        scaled = rows.abs()
        unit = scaled.amax(1, True)
        if self.step == 1:
            unit.mul_(1 / self.top)
        sums = self._sums(torch.div(rows, unit, out=scaled))
        return sums.mul_(unit) if total is None else torch.addcmul(total, sums, unit)

    def _sums(self, scaled: Tensor) -> Tensor:
        """Round the inputs `scaled`, and multiply them by the transposed matrix.

        A digit is an integer from -`top` to `top`, in units of `step`. With two digits, the second
        holds what remains after the first, in units that are 2 `top` times smaller.
        """
        if self.digits == 1:
            return self._integer_product(scaled)
        high = scaled.round()
        low = scaled.sub_(high).mul_(2 * self.top)
        both = self._integer_product(torch.cat([high, low]))
        return both[: len(high)].add_(both[len(high) :], alpha=1 / (2 * self.top))

    def _integer_product(self, scaled: Tensor) -> Tensor:
        if self.packed is not None:
            return FBGEMM(scaled, self.step, self.top + 1, self.packed)
        digits = scaled.round().to(torch.int8)
        if digits.device.type == "cuda" and len(digits) < CUDA_ROWS:
            digits = torch.nn.functional.pad(digits, (0, 0, 0, CUDA_ROWS - len(digits)))
        sums = torch._int_mm(digits, self.integers.T)[: len(scaled)]
        return sums.to(torch.float32).mul_(self.scales)

    def _rotated(self, rows: Tensor) -> Tensor:
        if self.block == 1:
            return rows
        turned = torch.mm(rows.reshape(-1, self.block), hadamard(self.block, rows.device))
        return turned.view(rows.shape)


def _signal(
    rows: Tensor, factors: tuple[Tensor, Tensor] | None, bias: Tensor | None
) -> Tensor | None:
    """The product `rows @ first @ second` plus the bias, where `factors` is `(first, second)`.

    It is the bias alone if `factors` is None, and None if both are None.
    """
    if factors is None:
        return bias
    inner = torch.mm(rows, factors[0])
    return torch.mm(inner, factors[1]) if bias is None else torch.addmm(bias, inner, factors[1])


def rotation_block(width: int) -> int:
    """Side of the `hadamard` matrices that rotate rows of this width; 1 for no rotation."""
    return min(LARGEST_BLOCK, width & -width)


@constant
def _hadamard_rows(side: int) -> Tensor:
    with torch.device("cpu"):
        matrix = torch.ones(1, 1)
        while len(matrix) < side:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix / side**0.5


@constant
def hadamard(side: int, device: torch.device) -> Tensor:
    """Orthogonal symmetric matrix with entries +-1 / sqrt(side), where `side` is a power of 2.

    It is the Hadamard matrix of Sylvester's construction, divided by sqrt(side).

    Examples:
        >>> hadamard(2, torch.device("cpu")).mul(2**0.5).round().tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    return _hadamard_rows(side).to(device)


def why_no_integers(device: torch.device, width: int) -> str:
    """Why a device has no exact product of integer matrices for rows of this width.

    The text is empty if the device has one.
    """
    if device.type == "cuda":
        fits = width % CUDA_MULTIPLE == 0
        return "" if fits else f"its number of inputs is no multiple of {CUDA_MULTIPLE} (cuBLAS)"
    if device.type != "cpu":
        return f"torch has no integer product on {device.type}"
    if _engine(device) == "fbgemm" or not _wraps(device):
        return ""
    return "the integer product of this processor is not exact"


@cache
def _engine(device: torch.device) -> str:
    """The name of torch's code for integer products on a device: `fbgemm` or `int_mm`.

    The first is a library for CPUs, which is used if possible. The second is `torch._int_mm`.
    """
    if device.type != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
        return "int_mm"
    try:
        _prepacked(torch.ones(8, 8, dtype=torch.int8), torch.ones(8))
    except (AttributeError, RuntimeError):  # a torch without these products
        return "int_mm"
    return "fbgemm"


def _prepacked(integers: Tensor, scales: Tensor) -> Any:
    """A matrix of integers and its row scales, packed for fbgemm, an integer library in torch."""
    with _ENGINE_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated, their products are not
        before = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = "fbgemm"
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            weight = torch._make_per_channel_quantized_tensor(integers, scales.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = before


@cache
def saturates() -> bool:
    """Whether the integer product of fbgemm overflows for numbers up to `TOP` (127).

    fbgemm is an integer library in torch. Its product overflows on processors without VNNI, the
    instructions for products of bytes.
    """
    side = 64
    packed = _prepacked(torch.full((side, side), TOP, dtype=torch.int8), torch.ones(side))
    digits = torch.full((1, side), float(TOP))
    sums = FBGEMM(digits, 1.0, TOP + 1, packed)
    return not bool(sums.eq(TOP * TOP * side).all())


@cache
def _wraps(device: torch.device) -> bool:
    """Whether `torch._int_mm`, the product of integer matrices, gives wrong sums on this device.

    A product of two matrices whose entries are 127 shows it.
    """
    digits = torch.full((32, 64), TOP, dtype=torch.int8, device=device)
    return not bool(torch._int_mm(digits, digits.T).eq(TOP * TOP * 64).all())
