"""Stores the noise of a weight (the weight minus its low-rank signal) in one of several formats."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.nn.stores.codebooks import CODEBOOKS, RUN, SCALES, table
from hf_rmt.nn.stores.export_ops import plain_noise
from hf_rmt.nn.stores.group_scales import repeated, scale_codes
from hf_rmt.nn.stores.packing import pack_runs, row_chunks, store_sizes
from hf_rmt.settings.noise_kinds import NOISE_KINDS

PIECE = 640 * 2048
"""Number of weights that are unpacked at once: a multiple of `Codebook.run` of every format. A
larger number takes more memory for temporary tensors, and a smaller number takes more time."""
unpacker: Any = None
multiplier: Any = None
"""The modules `jit_unpack` and `jit_product`, which the package sets. Both are None in the code
file that is saved with a model, so that the model loads without this package."""


class NoiseStore(nn.Module):
    """The frozen noise of one weight: nothing, packed codes with their scales, or the tensor.

    Noise is the weight minus its low-rank signal. The packed kinds are `int8`, `int4` and
    `ternary`. They flatten the noise, split it into groups of neighbours with one scale each, and
    pad it to whole runs of 16 groups. `codes` has one byte for 1 (`int8`), 2 (`int4`) or 5
    (`ternary`) weights. The scales of the groups lie on a logarithmic grid: the code of a scale
    is `coarse`, one byte per run, plus `fine`, 4 bits per group. `base` holds the largest scale, as
    the bits of its float32. These four buffers hold integers, which a cast of the model leaves as
    they are. The kind `keep` holds the noise itself as `residual`, and `drop` holds nothing.

    Args:
        kind: One of `NOISE_KINDS`: `drop`, `ternary`, `int4`, `int8` or `keep`.
        out_features: Number of rows of the weight.
        in_features: Number of columns of the weight.
        device: Device of the buffers, which hold zeros until `store` or a state dict fills them.
        dtype: Dtype of `residual`, for the kind `keep`.

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
            sizes = store_sizes(CODEBOOKS[kind], out_features * in_features)
            for name, size in zip(("codes", "fine", "coarse"), sizes, strict=True):
                self.register_buffer(name, torch.zeros(size, device=device, dtype=torch.uint8))
            self.register_buffer("base", torch.zeros(1, device=device, dtype=torch.int32))

    @torch.no_grad()
    def store(self, weight: Tensor, signal: tuple[Tensor, Tensor] | None = None) -> None:
        """Fill the store with a weight, minus a low-rank signal if one is given.

        Args:
            weight: Shape (out, in), finite; it is not changed.
            signal: Factors (left, right) whose product is subtracted, a few rows at a time.

        Raises:
            ValueError: If the shape differs from the store's, or an entry is nan or infinite.
        """
        shape = (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"weight must have the store's shape {shape}, got {tuple(weight.shape)}"
            )
        if self.kind == "keep":
            for start, rows in row_chunks(weight, signal):
                self.residual[start : start + len(rows)] = rows
        if self.kind not in CODEBOOKS:
            return
        peak = torch.stack([rows.abs().amax() for _, rows in row_chunks(weight, signal)]).amax()
        if not torch.isfinite(peak.to(torch.float32)):
            raise ValueError(
                "the weight holds nan, inf or numbers too large for float32; leave it dense"
            )
        least = torch.finfo(torch.float32).tiny / CODEBOOKS[self.kind].unit
        if 0 < peak < least:
            raise ValueError(
                f"the largest entry to be stored is {float(peak):.3g}, but scales in float32 need "
                f"at least {least:.3g}; multiply the weight by a power of ten, or leave such a "
                "layer dense"
            )
        self._pack(weight, signal, peak)

    def _pack(self, weight: Tensor, signal: tuple[Tensor, Tensor] | None, peak: Tensor) -> None:
        book = CODEBOOKS[self.kind]
        self.base.copy_((peak * book.unit).to(torch.float32).reshape(1).view(torch.int32))
        peak = torch.where(peak > 0, peak, 1.0)
        held, done = weight.new_empty(0, dtype=torch.float32), 0
        for start, rows in row_chunks(weight, signal):
            held = torch.cat([held, (rows / peak).flatten().to(torch.float32)])
            if start + len(rows) == self.out_features:
                held = nn.functional.pad(held, (0, -len(held) % book.run))
            runs = len(held) // book.run
            if not runs:
                continue
            ready, held = held[: runs * book.run], held[runs * book.run :]
            codes, fine, coarse = pack_runs(self.kind, ready.view(runs, RUN, book.group))
            self.codes.view(-1, book.run_bytes)[done : done + runs] = codes
            self.fine.view(-1, RUN // 2)[done : done + runs] = fine
            self.coarse[done : done + runs] = coarse
            done += runs

    def dense(self, dtype: torch.dtype | None = None, *, scratch: bool = False) -> Tensor:
        """The noise (the weight minus its low-rank signal) as a tensor of shape (out, in).

        Args:
            dtype: Dtype of the result; None for float32, or for `residual.dtype` with kind `keep`.
            scratch: Whether the result may lie in memory that the next call on this thread
                overwrites. This saves the time to map new memory.

        Returns:
            A new tensor; with `scratch`, a tensor in memory that is used again. With `keep`, it is
            `residual` itself if `residual` has this dtype.

        Raises:
            ValueError: If the store drops the noise.
        """
        return self.rows(0, self.out_features, dtype, scratch=scratch)

    def rows(
        self, start: int, stop: int, dtype: torch.dtype | None = None, *, scratch: bool = False
    ) -> Tensor:
        """Rows `start` to `stop` (exclusive) of the result of `dense`; only these are unpacked."""
        return self(start, stop, dtype, scratch=scratch)

    def forward(
        self, start: int, stop: int, dtype: torch.dtype | None = None, *, scratch: bool = False
    ) -> Tensor:
        """Do the work of `rows`, which calls the module so that hooks load offloaded buffers."""
        if self.kind == "drop":
            raise ValueError("noise='drop' stores no noise, so there is nothing to make dense")
        if self.kind == "keep":
            rows = self.residual[start:stop]
            return rows if dtype is None else rows.to(dtype)
        first, last = start * self.in_features, stop * self.in_features
        dtype = dtype or torch.float32
        if torch.compiler.is_compiling():  # a loop would be unrolled into the program
            return self._weights(first, last).to(dtype).view(-1, self.in_features)
        codes = self.codes
        if scratch and codes.device.type == "cpu":  # on other devices, streams could overwrite it
            result = scratch_memory(last - first, dtype)
        else:
            result = torch.empty(last - first, dtype=dtype, device=codes.device)
        for low in range(first, last, PIECE):
            high = min(low + PIECE, last)
            self._weights(low, high, result[low - first : high - first])
        return result.view(stop - start, self.in_features)

    def _weights(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Unpack entries `first` to `last` (exclusive) of the flat noise, into `out` if given."""
        book = CODEBOOKS[self.kind]
        low, high = first // book.run, -(-last // book.run)
        size = (high - low) * book.run
        whole = out is not None and out.dtype == torch.float32 and len(out) == size
        values = self._unpacked(low, high, out if whole else None)
        if whole or out is None:
            return values[first - low * book.run : last - low * book.run]
        return out.copy_(values[first - low * book.run : last - low * book.run])

    def _unpacked(self, low: int, high: int, out: Tensor | None) -> Tensor:
        """Unpack all weights of the runs `low` to `high` (exclusive), into `out` if given.

        A run is 16 groups of weights, with one scale for each group.
        """
        book = CODEBOOKS[self.kind]
        codes = self.codes[low * book.run_bytes : high * book.run_bytes]
        fine, coarse = self.fine[low * RUN // 2 : high * RUN // 2], self.coarse[low:high]
        if unpacker is not None and unpacker.can_read(codes):
            return unpacker.unpack(codes, fine, coarse, self.base, self.kind, out)
        values = book.decode(codes)
        grid = table(SCALES, codes.device) * self.base.view(torch.float32)
        groups = values.view(-1, book.group)
        scales = repeated(grid, scale_codes(fine, coarse), book.group)
        if torch.compiler.is_compiling():
            return (groups * scales).view(-1)
        target = groups if out is None else out.view(-1, book.group)
        return torch.mul(groups, scales, out=target).view(-1)

    def product(self, x: Tensor) -> Tensor | None:
        """The product of x and the transposed noise, if it can be computed from the packed codes.

        Args:
            x: Shape (..., in).

        Returns:
            Shape (..., out), with the dtype of x. None if x has many rows, if x or the codes are
            not on the CPU, if the noise is not packed, without Numba, or in a compiled program.
        """
        if self.kind not in CODEBOOKS or multiplier is None:
            return None
        if not multiplier.can_multiply(self.codes, x, self.in_features):
            return None
        stored = self.codes, self.fine, self.coarse, self.base
        return multiplier.multiply(x, *stored, self.kind, self.out_features)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """The result of `dense`, computed with operations that any exported graph may contain."""
        if self.kind == "keep":
            return self.residual.to(dtype)
        shape = self.out_features, self.in_features
        stored = self.codes, self.fine, self.coarse, self.base
        return plain_noise(self.kind, *stored, shape).to(dtype)

    def group_scales(self) -> Tensor:
        """The scale of each group of neighbouring weights in a packed store, flat float32."""
        codes = scale_codes(self.fine, self.coarse).to(torch.int32)
        grid = table(SCALES, codes.device) * self.base.view(torch.float32)
        return grid.index_select(0, codes)

    def extra_repr(self) -> str:
        """What `print` shows of the store."""
        return self.kind


def stored_bits(shape: tuple[int, int], rank: int, noise: str, *, dtype: torch.dtype) -> int:
    """Bits on disk of one compressed weight: factors, noise codes and scales, without the bias.

    Args:
        shape: (out_features, in_features).
        rank: Rank of the signal, the low-rank part of the weight, which is stored as two factors.
        noise: One of `NOISE_KINDS`.
        dtype: Dtype of the model. With a packed store the factors take 16 bits per entry for every
            dtype, because they are exact in bfloat16.

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
        return 16 * factors + 8 * sum(store_sizes(CODEBOOKS[noise], size)) + 32
    return width * (factors + (size if noise == "keep" else 0))


def check_kind(kind: str) -> None:
    """Raise an error if a kind of noise store is unknown.

    Raises:
        ValueError: If the kind is none of `NOISE_KINDS`.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"noise must be one of {', '.join(NOISE_KINDS)}, got {kind!r}")


_SCRATCH = threading.local()


def scratch_memory(size: int, dtype: torch.dtype) -> Tensor:
    """Memory for one unpacked layer, shared by the layers of a thread; its contents are arbitrary.

    Args:
        size: Number of entries.
        dtype: Dtype of the entries.

    Returns:
        A flat tensor. The next call on this thread returns the same memory.
    """
    kept: dict[Any, Tensor] = vars(_SCRATCH)
    if dtype not in kept or len(kept[dtype]) < size:
        with torch.inference_mode(False):
            made = torch.empty(size, dtype=dtype, device="cpu")
        if type(made) is not Tensor:  # when a program is traced, tensors may have no values
            return made
        kept[dtype] = made
    return kept[dtype][:size]
