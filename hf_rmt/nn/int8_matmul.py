"""Matrix products with integer weights, by the integer instructions of the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 254
"""Base of the digits in which inputs are written. An input, scaled to [-127, 127], is d_1 + d_2 /
BASE + d_3 / BASE^2, where each digit is a whole number from -127 to 127."""
ENTRIES_AT_ONCE = 2**18
"""Number of entries of the input or output that are processed at once, so that they fit into the
cache."""
SMALLEST = 1e-30
"""A row of numbers is divided by its largest absolute entry, or by this number if that is larger,
to avoid a division by 0. Rows with only smaller entries lose precision."""
SHORTEST_SIDE = 384
"""Smallest number of rows, and of columns, of a weight that uses integer products. For a smaller
weight, the conversion of the inputs to integer digits takes more time than the product saves."""
LONGEST = 2**16
"""Largest number of columns of a weight that uses integer products. With more columns, the sum for
inputs of two digits could overflow 32 bits."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def runs_on_integers(x: Tensor, shape: tuple[int, int]) -> bool:
    """Whether `integer_linear` can be used for x and a weight of this shape, and is faster.

    Integers are faster than floating point if the processor multiplies bytes four at a time (VNNI)
    and the weight is large.
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
    """Split each entry of `rows`, a number from -127 to 127, into int8 digits of base 254.

    The result has shape (digits, *shape of rows), the most significant digit first. For example,
    3.1 becomes 3 and 25, because 3.1 is about 3 + 25 / 254. `rows` is overwritten.
    """
    parts = rows.new_empty((digits, *rows.shape), dtype=torch.int8)
    for part in parts[:-1]:
        whole = rows.round()
        part.copy_(whole)
        rows.sub_(whole).mul_(BASE)
    parts[-1] = rows.round_()
    return parts


def _joined(sums: Tensor) -> Tensor:
    """Combine several matrix products, one for each digit of the inputs, into one product.

    Inputs are written in digits of base 254. `sums[0]` is the product for the most significant
    digit. The result counts in units of the last digit: for two digits it is 254 sums[0] + sums[1].
    """
    total = sums[0]
    if len(sums) > 1:
        total = torch.add(sums[1], total, alpha=BASE)
    for part in sums[2:]:
        total = total.to(torch.float32).mul_(BASE).add_(part)
    return total
