"""What is left of a weight after its signal, stored as cheaply as asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hf_rmt.nn.codebooks import (
    CODEBOOKS,
    FINE_CODES,
    RUN,
    SCALE_STEP,
    SCALES,
    Codebook,
    table,
)
from hf_rmt.nn.export_ops import plain_noise
from hf_rmt.settings.noise_kinds import NOISE_KINDS

CHUNK = 2**15
CHUNKS = 24
"""Weights are packed in pieces of this size, or of this part of the matrix if that is more: the
memory of packing stays a fraction of the matrix."""


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
        values = values.view(-1, book.group).mul_(self._scales(low, high)[:, None]).view(-1)
        values = values[first - low * book.run : last - low * book.run]
        values = values.view(stop - start, self.in_features)
        return values if dtype is None else values.to(dtype)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """What `dense` gives, by operations that every exported graph can hold."""
        if self.kind == "keep":
            return self.residual.to(dtype)
        shape = self.out_features, self.in_features
        stored = self.codes, self.fine, self.coarse, self.base
        return plain_noise(self.kind, *stored, shape).to(dtype)

    def _scales(self, low: int, high: int) -> Tensor:
        """Scales of the groups of some runs, flat."""
        fine = self.fine[low * RUN // 2 : high * RUN // 2].view(-1, RUN // 2)
        codes = torch.cat([fine & 15, fine >> 4], dim=1) + self.coarse[low:high, None]
        grid = table(SCALES, codes.device) * self.base.view(torch.float32)
        return grid.index_select(0, codes.flatten().to(torch.int32))

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


def rows_at_once(shape: Sequence[int]) -> int:
    """Rows of a weight of that shape to work on at once, for memory's sake."""
    return max(1, max(CHUNK, shape[0] * shape[1] // CHUNKS) // max(1, shape[1]))


def _sizes(book: Codebook, size: int) -> tuple[int, int, int]:
    """Bytes of codes, of fine and of coarse scales for a number of weights."""
    runs = -(-size // book.run)
    return runs * book.run_bytes, runs * RUN // 2, runs


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
