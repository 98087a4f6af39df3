"""What is left of a weight after its signal, stored as cheaply as asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hf_rmt.nn.codebooks import (
    CODEBOOKS,
    FINE_CODES,
    RUN,
    SCALE_STEP,
    SCALES,
    TRITS,
    Codebook,
    table,
)
from hf_rmt.settings import NOISE_KINDS

CHUNK = 2**15
CHUNKS = 24
"""Weights are packed in pieces of this size, or of this part of the matrix if that is more: the
memory of packing stays a fraction of the matrix."""


NIBBLES, ONES = 0x0F0F0F0F0F0F0F0F, 0x0101010101010101
"""The lower nibble of each of eight bytes, and one in each."""
TWICE = 2**32 + 1
"""A number below 2^32 times this one is itself twice, in 32 bits each."""


class NoiseStore(nn.Module):
    """The noise of one weight, frozen: nothing, packed codes with their scales, or the tensor.

    Packed kinds hold the row-major weight in groups, whatever its shape, padded to whole runs of
    groups: `codes`, one byte for 1 (`int8`), 2 (`int4`) or 5 (`ternary`) weights; the groups'
    scales on a logarithmic grid, `coarse`, a byte a run, plus `fine`, a nibble a group; and
    `base`, the largest scale as the bits of its float32. All are integers, which no cast of the
    model touches. `keep` holds `residual` in the dtype of the model.

    Args:
        kind: One of `NOISE_KINDS`.
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        device: Of the buffers, which are empty until `store` or a state dict fills them.
        dtype: Of a kept residual.

    Raises:
        ValueError: If the kind is unknown.
    """

    codes: Tensor
    fine: Tensor
    coarse: Tensor
    base: Tensor
    residual: Tensor

    def __init__(
        self,
        kind: str,
        out_features: int,
        in_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_kind(kind)
        self.kind, self.out_features, self.in_features = kind, out_features, in_features
        if kind == "keep":
            shape = (out_features, in_features)
            self.register_buffer("residual", torch.zeros(shape, device=device, dtype=dtype))
        elif kind != "drop":
            sizes = _sizes(CODEBOOKS[kind], out_features * in_features)
            for name, size in zip(("codes", "fine", "coarse"), sizes, strict=True):
                self.register_buffer(name, torch.zeros(size, device=device, dtype=torch.uint8))
            self.register_buffer("base", torch.zeros(1, device=device, dtype=torch.int32))

    @torch.no_grad()
    def store(self, weight: Tensor, signal: tuple[Tensor, Tensor] | None = None) -> None:
        """Fill the store with a weight, less a signal if one is given.

        Args:
            weight: Shape (out, in), finite; it is not changed.
            signal: Factors (left, right) whose product is subtracted, a few rows at a time.

        Raises:
            ValueError: If the shape differs from the store's, or an entry is nan or infinite.
        """
        shape = (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"the store was made for a weight of shape {shape}, got {tuple(weight.shape)}"
            )
        if self.kind == "keep":
            for start, rows in _row_chunks(weight, signal):
                self.residual[start : start + len(rows)] = rows
        if self.kind not in CODEBOOKS:
            return
        peak = torch.stack([rows.abs().amax() for _, rows in _row_chunks(weight, signal)]).amax()
        if not torch.isfinite(peak.to(torch.float32)):
            raise ValueError(
                "the weight holds nan, inf or more than float32 can; leave such a layer dense"
            )
        least = torch.finfo(torch.float32).tiny / CODEBOOKS[self.kind].unit
        if 0 < peak < least:
            raise ValueError(
                f"the largest entry of what is stored is {float(peak):.3g}, and scales in float32 "
                f"take {least:.3g} at least; multiply the weight by a power of ten, or leave such "
                "a layer dense"
            )
        self._pack(weight, signal, peak)

    def _pack(self, weight: Tensor, signal: tuple[Tensor, Tensor] | None, peak: Tensor) -> None:
        book = CODEBOOKS[self.kind]
        self.base.copy_((peak * book.unit).to(torch.float32).reshape(1).view(torch.int32))
        peak = torch.where(peak > 0, peak, 1.0)
        held, done = weight.new_empty(0, dtype=torch.float32), 0
        for start, rows in _row_chunks(weight, signal):
            held = torch.cat([held, (rows / peak).flatten().to(torch.float32)])
            if start + len(rows) == self.out_features:
                held = nn.functional.pad(held, (0, -len(held) % book.run))
            runs = len(held) // book.run
            if not runs:
                continue
            ready, held = held[: runs * book.run], held[runs * book.run :]
            codes, fine, coarse = _pack_runs(book, ready.view(runs, RUN, book.group))
            self.codes.view(-1, book.run_bytes)[done : done + runs] = codes
            self.fine.view(-1, RUN // 2)[done : done + runs] = fine
            self.coarse[done : done + runs] = coarse
            done += runs

    def check(self) -> None:
        """Refuse tensors that no store of this kind can have.

        Raises:
            ValueError: If a tensor is missing, has another shape or dtype, is still on the meta
                device or cannot be a scale.
        """
        if self.kind == "keep":
            check_tensor("noise.residual", self.residual, (self.out_features, self.in_features))
        if self.kind not in CODEBOOKS:
            return
        book = CODEBOOKS[self.kind]
        sizes = _sizes(book, self.out_features * self.in_features)
        for name, size in zip(("codes", "fine", "coarse"), sizes, strict=True):
            check_tensor(f"noise.{name}", getattr(self, name), (size,), torch.uint8)
        check_tensor("noise.base", self.base, (1,), torch.int32)
        base = float(self.base.view(torch.float32))
        if not 0 <= base < math.inf:
            raise ValueError(
                f"noise.base is the largest scale and must be finite and not negative, got {base}; "
                "the file is damaged, save or download it again"
            )
        if self.kind == "ternary" and self.codes.numel() and int(self.codes.max()) >= len(TRITS):
            raise ValueError(
                f"noise.codes of ternary noise must be below {len(TRITS)}, got "
                f"{int(self.codes.max())}; the file is damaged, save or download it again"
            )

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The noise as a tensor of shape (out, in).

        Args:
            dtype: Of the result; None for float32, or for that of a kept residual.

        Returns:
            A new tensor, except where a kept residual has that dtype already.

        Raises:
            ValueError: If the store is one that drops the noise.
        """
        return self.rows(0, self.out_features, dtype)

    def rows(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Rows start to stop of `dense`, without unpacking the others."""
        if self.kind == "drop":
            raise ValueError("noise='drop' stores nothing to make dense")
        if self.kind == "keep":
            rows = self.residual[start:stop]
            return rows if dtype is None else rows.to(dtype)
        book = CODEBOOKS[self.kind]
        first, last = start * self.in_features, stop * self.in_features
        low, high = first // book.run, -(-last // book.run)
        values = book.decode(self.codes[low * book.run_bytes : high * book.run_bytes])
        values = self._scaled(values, book.group, low, high)
        values = values[first - low * book.run : last - low * book.run]
        values = values.view(stop - start, self.in_features)
        return values if dtype is None else values.to(dtype)

    def _scaled(self, values: Tensor, group: int, low: int, high: int) -> Tensor:
        """Weights of some runs times the scales of their groups; the values are overwritten."""
        codes = self._scale_codes(low, high)
        grid = table(SCALES, codes.device) * self.base.view(torch.float32)
        if group == 8 and codes.device.type == "cpu" and not torch.compiler.is_compiling():
            return values.mul_(_eightfold(grid, codes))
        scales = grid.index_select(0, codes.to(torch.int32))
        return values.view(-1, group).mul_(scales[:, None]).view(-1)

    def _scale_codes(self, low: int, high: int) -> Tensor:
        """Scale codes of the groups of some runs, flat, one byte each."""
        fine, coarse = self.fine[low * RUN // 2 : high * RUN // 2], self.coarse[low:high]
        if torch.compiler.is_compiling() or fine.device.type != "cpu":
            nibbles = fine.view(-1, RUN // 2)
            return (torch.cat([nibbles & 15, nibbles >> 4], dim=1) + coarse[:, None]).flatten()
        # The eight bytes of a run are worked on as one number; no sum leaves its byte.
        if fine.storage_offset() % 8:
            fine = fine.clone()
        bytes_ = fine.view(torch.int64)
        nibbles = torch.stack([bytes_ & NIBBLES, bytes_ >> 4 & NIBBLES], dim=1)
        return nibbles.add_(coarse.to(torch.int64).mul_(ONES)[:, None]).view(torch.uint8).flatten()

    def extra_repr(self) -> str:
        """What `print` shows of the store."""
        return self.kind


def stored_bits(shape: tuple[int, int], rank: int, noise: str, *, dtype: torch.dtype) -> int:
    """Bits on disk of one compressed weight: factors, noise codes and scales, without the bias.

    Args:
        shape: (out_features, in_features).
        rank: Directions in the signal.
        noise: One of `NOISE_KINDS`.
        dtype: Of the model. The factors beside a packed store take 16 bits an entry whatever it
            is: they are representable in bfloat16.

    Returns:
        The exact number of bits.

    Raises:
        ValueError: If the kind is unknown.

    Examples:
        >>> stored_bits((64, 64), 0, "int8", dtype=torch.float32) / 64**2
        8.5703125
    """
    check_kind(noise)
    size, width = shape[0] * shape[1], 8 * dtype.itemsize
    factors = rank * (shape[0] + shape[1])
    if noise in CODEBOOKS:
        return 16 * factors + 8 * sum(_sizes(CODEBOOKS[noise], size)) + 32
    return width * (factors + (size if noise == "keep" else 0))


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of noise store.

    Raises:
        ValueError: If it is none of `NOISE_KINDS`.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"noise must be one of {', '.join(NOISE_KINDS)}, got {kind!r}")


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Refuse a tensor that was not loaded, or is another than the layer's.

    Args:
        name: Of the tensor, for the message.
        tensor: The tensor.
        shape: That it must have.
        dtype: That it must have; None for any floating one with finite entries.

    Raises:
        ValueError: If it is on the meta device, or has another shape, dtype or infinite entries.
    """
    if tensor.device.type == "meta":
        raise ValueError(
            f"{name} was not loaded; the file lacks it, save or download the model again"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} must have shape {shape}, got {tuple(tensor.shape)}; the file belongs to "
            "another model or is damaged"
        )
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}; do not cast packed tensors")
    if dtype is None and not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a floating dtype, got {tensor.dtype}")
    if dtype is None and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} holds nan or inf; the file is damaged, save or download it again"
        )


def rows_at_once(shape: Sequence[int]) -> int:
    """Rows of a weight of that shape to work on at once, for memory's sake."""
    return max(1, max(CHUNK, shape[0] * shape[1] // CHUNKS) // max(1, shape[1]))


def _sizes(book: Codebook, size: int) -> tuple[int, int, int]:
    """Bytes of codes, of fine and of coarse scales for a number of weights."""
    runs = -(-size // book.run)
    return runs * book.run_bytes, runs * RUN // 2, runs


def _eightfold(grid: Tensor, codes: Tensor) -> Tensor:
    """Entries of a grid by their codes, each eight times in a row, flat.

    Four equal numbers travel as one complex number of 128 bits, which is several times as fast as
    multiplying with a scale that is repeated along rows of eight.
    """
    fours = torch.view_as_complex(grid[:, None].expand(-1, 4).contiguous().view(torch.float64))
    twice = codes.to(torch.int64).mul_(TWICE).view(torch.int32)
    return torch.view_as_real(fours.index_select(0, twice)).view(torch.float32).flatten()


def _row_chunks(
    weight: Tensor, signal: tuple[Tensor, Tensor] | None
) -> Iterator[tuple[int, Tensor]]:
    """Rows of the weight less the signal, float32 or better, with the index of their first."""
    step, dtype = rows_at_once(weight.shape), torch.promote_types(weight.dtype, torch.float32)
    for start in range(0, len(weight), step):
        rows = weight[start : start + step].to(dtype)
        if signal is not None:
            left, right = (factor.to(dtype) for factor in signal)
            rows = torch.addmm(rows, left[start : start + step], right, alpha=-1)
        yield start, rows


def _pack_runs(book: Codebook, runs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scale codes of least squared error, for weights over the peak of the matrix.

    Args:
        book: The codebook.
        runs: Shape (runs, RUN, group), entries in [-1, 1].

    Returns:
        codes (runs, run_bytes), fine (runs, RUN / 2) and coarse (runs,).
    """
    size = runs.abs().amax(2) if book.largest else runs.square().mean(2).sqrt()
    start = torch.round(-SCALE_STEP * torch.log2(size)).clamp_max(255)
    coarse = (start.amin(1, keepdim=True) + book.offsets[0]).clamp(0, 256 - FINE_CODES)
    groups, grid = runs.view(-1, book.group), table(SCALES, runs.device) * book.unit
    best = torch.full_like(size, torch.inf).flatten()
    codes = torch.zeros((len(groups), book.group // book.block), dtype=torch.uint8).to(runs.device)
    fine = torch.zeros_like(best, dtype=torch.uint8)
    for offset in book.offsets:
        tried = (start + offset - coarse).clamp_(0, FINE_CODES - 1)
        scales = grid[(coarse + tried).to(torch.int32)].view(-1, 1)
        bytes_ = book.encode(groups / scales)
        values = book.decode(bytes_.flatten()).view_as(groups).mul_(scales)
        error = values.sub_(groups).square_().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        fine = torch.where(better, tried.flatten().to(torch.uint8), fine)
        codes = torch.where(better[:, None], bytes_, codes)
    low, high = fine.view(-1, 2, RUN // 2).unbind(1)
    return codes.view(len(runs), -1), low | high << 4, coarse.flatten().to(torch.uint8)
