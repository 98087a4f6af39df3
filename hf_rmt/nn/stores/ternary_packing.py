"""Ternary weights: which entries of a matrix become -1, 0 and 1, and how they are packed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hf_rmt.checks import check_choice
from hf_rmt.nn.stores.codebooks import CODEBOOKS, table
from hf_rmt.nn.stores.packing import rows_at_once

SCALE_OPTIONS = ("row", "tensor")
LIFTS = (64, 16, 4, 1)


def ternarize(
    weight: Tensor, *, sparsity: float | None = None, scale: str = "row"
) -> tuple[Tensor, Tensor]:
    """The ternary matrix s T nearest to a weight, with T in {-1, 0, 1} and scales s.

    Let |w_1| >= |w_2| >= ... be the sorted absolute entries. If the m largest are kept, the best
    scale is their mean. Compared with T = 0, this lowers the squared error by (|w_1| + ... +
    |w_m|)^2 / m. Without `sparsity`, the m that lowers the error most is found exactly.

    Args:
        weight: Shape (out, in), finite.
        sparsity: Share of zeros, in [0, 1], in each row or in the tensor, depending on `scale`.
            Entries that are zero stay zero. None for the share with the smallest error.
        scale: `row` for one scale per row, or `tensor` for a single scale.

    Returns:
        T, int8 of shape (out, in), and the scales in the dtype of the weight, shape (out,) or (1,).

    Raises:
        ValueError: If sparsity lies outside of [0, 1], scale is unknown, the weight has no entries
            for a scale, or an entry is nan or infinite.

    Examples:
        >>> signs, scales = ternarize(torch.tensor([[4.0, -3.0, 0.5, 0.0]]))
        >>> signs.tolist(), scales.tolist()
        ([[1, -1, 0, 0]], [3.5])
    """
    check_options(sparsity, scale)
    if not weight.shape[1] or (scale == "tensor" and not len(weight)):
        raise ValueError(
            f"a weight must have entries from which a scale is computed, got shape "
            f"{tuple(weight.shape)}; leave such a layer dense"
        )
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds nan or inf; leave such a layer dense")
    if scale == "tensor":
        signs, scales = _ternarize_rows(weight.reshape(1, -1), sparsity)
        return signs.view(weight.shape), scales
    chunks = weight.split(rows_at_once(weight.shape))
    parts = [_ternarize_rows(rows, sparsity) for rows in chunks]
    return torch.cat([signs for signs, _ in parts]), torch.cat([scales for _, scales in parts])


def _ternarize_rows(rows: Tensor, sparsity: float | None) -> tuple[Tensor, Tensor]:
    ordered, order = rows.abs().sort(dim=1, descending=True, stable=True)
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    sums = ordered.to(torch.float64).cumsum(1)
    if sparsity is None:
        kept = (sums.square() / places).argmax(1, keepdim=True) + 1
    else:
        kept = torch.full_like(order[:, :1], round((1 - sparsity) * rows.shape[1]))
    kept = kept.minimum(rows.count_nonzero(1)[:, None])
    mask = torch.zeros_like(rows, dtype=torch.int8).scatter_(1, order, (places <= kept).char())
    total = torch.where(kept > 0, sums.gather(1, (kept - 1).clamp_min(0)), 0.0)
    scales = (total / kept.clamp_min(1)).squeeze(1).to(rows.dtype)
    return mask.mul_(rows.sign().char()), scales


def pack_trits(trits: Tensor) -> Tensor:
    """Pack trits (-1, 0 or 1), four per byte: two bits each, in two's complement.

    The four trits of a byte are not neighbours. Their distance is a quarter of the whole length, so
    that unpacking works on long slices.

    Args:
        trits: int8 in {-1, 0, 1}, any shape.

    Returns:
        int8 of shape (1, ceil(n / 4)) for n trits.
    """
    planes = functional.pad(trits.flatten(), (0, -trits.numel() % 4)).view(4, -1)
    codes = torch.zeros_like(planes[:1])
    for plane in planes.flip(0):
        codes = codes << 2 | plane & 3
    return codes


def unpack_trits(codes: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `pack_trits`: trits (-1, 0 or 1) as int8 of the given shape."""
    # The factors 64, 16, 4, 1 move the wanted bits to the top. The shift back extends their sign.
    planes = codes * table(LIFTS, codes.device, torch.int8)[:, None]
    planes.bitwise_right_shift_(6)
    return planes.view(-1)[: shape[0] * shape[1]].view(shape)


def to_fifths(trits: Tensor) -> Tensor:
    """Pack n trits (-1, 0 or 1), five in a byte, for a file: int8 of shape (ceil(n / 5),)."""
    padded = functional.pad(trits.flatten(), (0, -trits.numel() % 5))
    return CODEBOOKS["ternary"].encode(padded.view(1, -1)).view(torch.int8)[0]


def from_fifths(codes: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `to_fifths`: trits (-1, 0 or 1) as int8 of the given shape."""
    trits = CODEBOOKS["ternary"].decode(codes.view(torch.uint8))
    return trits[: shape[0] * shape[1]].to(torch.int8).view(shape)


def check_options(sparsity: float | None, scale: str) -> None:
    """Raise an error for options that `ternarize` does not accept.

    Raises:
        ValueError: If sparsity lies outside of [0, 1], or scale is unknown.
    """
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must lie in [0, 1] or be None, got {sparsity}")
    check_choice("scale", scale, SCALE_OPTIONS)
