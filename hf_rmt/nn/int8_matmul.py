"""Matrix products with integer weights, by the integer instructions of the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 254
"""Inputs are written as digits d_1 + d_2 / BASE + d_3 / BASE^2, each digit from -127 to 127."""
ENTRIES_AT_ONCE = 2**18
"""Number of entries of the input or output that are processed at once, to stay in the cache."""
SMALLEST = 1e-30
"""Rows whose largest absolute entry is below this number lose precision."""
SHORTEST_SIDE = 384
"""Smallest number of rows, and of columns, of a weight that uses integer products. For a smaller
weight, to make the digits takes more time than the integer product saves."""
LONGEST = 2**16
"""Largest number of columns of a weight that uses integer products. With more columns, sums of two
digits could overflow 32 bits."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def runs_on_integers(x: Tensor, shape: tuple[int, int]) -> bool:
    """Whether `integer_linear` can be used for x and a weight of this shape, and is faster.

    Integers are faster if the processor multiplies bytes four at a time (VNNI) and the weight is
    large.
    """
    if min(shape) < SHORTEST_SIDE or shape[1] > LONGEST or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype in FLOATS and _vnni()


def _vnni() -> bool:
    # This private function may be removed from torch; then VNNI counts as missing.
    supported = getattr(torch.cpu, "_is_vnni_supported", bool)()
    return torch.backends.mkldnn.is_available() and supported


def integer_linear(
    x: Tensor, signs: Tensor, scale: Tensor, bias: Tensor | None, *, digits: int
) -> Tensor:
    """The linear map x (scale signs)' + bias, where ' is the transpose; x is rounded.

    An entry of x is written with a few digits of base 254, which are integers from -127 to 127. So
    it is rounded to a multiple of 254^(1 - digits) / 127 times the largest absolute entry of its
    row. Two digits keep 16 bits of an entry. Three digits keep 24 bits, the precision of float32.
    The sums over integers are exact.

    Args:
        x: Inputs, shape (tokens, in).
        signs: int8, shape (out, in), with entries -1, 0 and 1.
        scale: One scale for each row of signs, shape (out,), or one for all, shape (1,).
        bias: Shape (out,) or None.
        digits: Number of digits of each entry of x: 1, 2 or 3.

    Returns:
        Shape (tokens, out), in the dtype of x.
    """
    out = x.new_empty(len(x), len(signs))
    scale = scale.to(torch.float32)
    bias = scale.new_zeros(1) if bias is None else bias.to(torch.float32)
    step = max(32, ENTRIES_AT_ONCE // max(signs.shape))
    for start in range(0, len(x), step):
        rows = x[start : start + step].to(torch.float32)
        largest = rows.abs().amax(1, keepdim=True).clamp_min_(SMALLEST)
        parts = _digits(rows * (127 / largest), digits)
        sums = torch._int_mm(parts.flatten(0, 1), signs.T).view(digits, len(rows), -1)
        product = _joined(sums) * (largest / (127 * BASE ** (digits - 1)))
        out[start : start + step] = torch.addcmul(bias, product, scale)
    return out


def _digits(rows: Tensor, digits: int) -> Tensor:
    """Write entries in [-127, 127] as int8 digits of base 254, the most significant digit first.

    The entries in `rows` are overwritten.
    """
    parts = rows.new_empty((digits, *rows.shape), dtype=torch.int8)
    for part in parts[:-1]:
        whole = rows.round()
        part.copy_(whole)
        rows.sub_(whole).mul_(BASE)
    parts[-1] = rows.round_()
    return parts


def _joined(sums: Tensor) -> Tensor:
    """Combine the matrix products of single digits of base 254 into the product of whole numbers.

    `sums` holds the product of the most significant digits first. The result is in units of the
    last digit.
    """
    total = sums[0]
    if len(sums) > 1:
        total = torch.add(sums[1], total, alpha=BASE)
    for part in sums[2:]:
        total = total.to(torch.float32).mul_(BASE).add_(part)
    return total
