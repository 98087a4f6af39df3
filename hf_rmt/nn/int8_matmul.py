"""Products with integer weights on the CPU's integer units."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 254
"""Base of the digits -127 .. 127 in which an input is written."""
ENTRIES_AT_ONCE = 2**18
"""Entries of the input or output that are worked on at once, to stay in the cache."""
SMALLEST = 1e-30
"""Rows whose largest entry is smaller lose precision."""
SHORTEST_SIDE = 384
"""Least shorter side of a weight; for less, making digits takes longer than the product saves."""
LONGEST = 2**16
"""Longer rows could overflow the 32 bits in which two digits are summed."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def runs_on_integers(x: Tensor, shape: tuple[int, int]) -> bool:
    """Whether `integer_linear` can be used for x and a weight of this shape, and is faster.

    It pays where the processor multiplies bytes four at a time (VNNI) and the matrix is large.
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
    """The linear map x (scale signs)' + bias, with x written in integer digits.

    Each row of x is rounded to multiples of 254^(1 - digits) / 127 of its largest entry: 16 bits
    with two digits; 24 with three, the precision of float32. The sums are exact.

    Args:
        x: Shape (tokens, in).
        signs: int8, shape (out, in).
        scale: Shape (out,) or (1,).
        bias: Shape (out,) or None.
        digits: 1, 2 or 3.

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
    """Digits of entries in [-127, 127], most significant first, int8; overwrites rows."""
    parts = rows.new_empty((digits, *rows.shape), dtype=torch.int8)
    for part in parts[:-1]:
        whole = rows.round()
        part.copy_(whole)
        rows.sub_(whole).mul_(BASE)
    parts[-1] = rows.round_()
    return parts


def _joined(sums: Tensor) -> Tensor:
    """The number from the sums of its digits, in units of the last digit."""
    total = sums[0]
    if len(sums) > 1:
        total = torch.add(sums[1], total, alpha=BASE)
    for part in sums[2:]:
        total = total.to(torch.float32).mul_(BASE).add_(part)
    return total
