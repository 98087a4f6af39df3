"""Unpacks noise in one pass, by machine code that Numba compiles for this processor.

Torch takes several passes over the weights, and gathers slowly. Where Numba is installed
(`pip install "hf_rmt[fast]"`), one loop looks up a code, multiplies it with the scale of its group
and writes the weight. The products are the same, bit for bit.
"""

# Numba's decorator has no types, and the functions that it compiles need none.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, library

from hf_rmt.nn.stores.codebooks import CODEBOOKS, RUN, SCALES, Codebook, table

logger = logging.getLogger(__name__)

PART = 2**17
"""The least number of weights for a thread. It takes 80 to 100 microseconds to unpack them, and 50
microseconds to pass two parts to threads."""
RUNS_AT_ONCE = 8
"""Runs that are unpacked step by step, so that they stay in the first cache."""
library.define(
    "hf_rmt::unpack",
    "(Tensor codes, Tensor fine, Tensor coarse, Tensor base, str kind, Tensor(a!) out) -> ()",
)


def can_unpack(codes: Tensor) -> bool:
    """Whether codes can be unpacked here: they lie on the CPU, and Numba works.

    Args:
        codes: Of a packed store.
    """
    if codes.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(codes) and has_numba()


def has_numba() -> bool:
    """Whether Numba is installed and can be imported."""
    return _numba() is not None


def unpack(
    codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, kind: str, out: Tensor | None
) -> Tensor:
    """The weights of some runs, as `NoiseStore` packs them.

    Args:
        codes: Of the runs, uint8, contiguous.
        fine: Nibbles of their groups' scales, RUN / 2 bytes per run.
        coarse: One byte per run.
        base: The largest scale, as the bits of its float32.
        kind: `int8`, `int4` or `ternary`.
        out: Where to write them: contiguous float32, as many entries as the runs have weights.
            None for a new tensor.

    Returns:
        The weights, flat float32.
    """
    if out is None:
        size = len(coarse) * CODEBOOKS[kind].run
        out = torch.empty(size, dtype=torch.float32, device=codes.device)
    torch.ops.hf_rmt.unpack(codes, fine, coarse, base, kind, out)
    return out


def _unpack(
    codes: Tensor, fine: Tensor, coarse: Tensor, base: Tensor, kind: str, out: Tensor
) -> None:
    book, kernel = CODEBOOKS[kind], _kernel(kind)
    scales = (table(SCALES, base.device) * base.view(torch.float32)).numpy()
    stored = codes.numpy(), fine.numpy(), coarse.numpy()
    weights, points = out.numpy(), _points(kind)
    parts = min(torch.get_num_threads(), out.numel() // PART)
    if parts < 2:
        kernel(*stored, scales, points, weights)
        return
    runs = len(coarse)
    ends = [runs * part // parts for part in range(parts + 1)]
    sizes = book.run_bytes, RUN // 2, 1

    def work(part: int) -> None:
        first, last = ends[part : part + 2]
        pieces = (
            array[first * size : last * size] for array, size in zip(stored, sizes, strict=True)
        )
        kernel(*pieces, scales, points, weights[first * book.run : last * book.run])

    list(_pool(os.getpid()).map(work, range(parts)))


library.impl("hf_rmt::unpack", "cpu", _unpack)
library.register_fake("hf_rmt::unpack", lambda *_: None)


@cache
def _numba() -> Any:
    """The module, or None where it is missing or does not fit the other packages."""
    if find_spec("numba") is None:
        return None
    try:
        import numba
    except (ImportError, SystemError) as error:
        logger.warning(
            "numba cannot be imported, so torch unpacks the noise, which is slower: %s", error
        )
        return None
    return numba


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The thread pool of a process; a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(os.cpu_count(), "hf_rmt_unpack")


@cache
def _points(kind: str) -> Any:
    """What the 256 bytes stand for, flat float32; zero for bytes that no store holds."""
    book = CODEBOOKS[kind]
    points = np.zeros((256, book.block), dtype=np.float32)
    points[: len(book.points)] = np.asarray(book.points).reshape(-1, book.block)
    return points.ravel()


@cache
def _kernel(kind: str) -> Callable[..., None]:
    """The compiled loop of a kind of store."""
    book = CODEBOOKS[kind]
    loop = _lookup(book) if book.cubic is None else _polynomial(book)
    try:
        return _compiled(loop, cache=True)
    except Exception as error:  # the cache cannot be written, or a file in it is damaged
        logger.debug("Numba's cache cannot be used, so this process compiles anew: %s", error)
        return _compiled(loop, cache=False)


def _lookup(book: Codebook) -> Callable[..., None]:
    """A loop that looks each byte up in the table of the points."""
    block, bytes_, half = book.block, book.group // book.block, RUN // 2

    def loop(codes, fine, coarse, scales, points, out):
        for run in range(len(coarse)):
            for group in range(RUN):
                pair = fine[run * half + group % half]
                nibble = (pair >> (4 * (group // half))) & 15
                scale = scales[(np.intp(coarse[run]) + nibble) & 255]
                first = (run * RUN + group) * bytes_
                for place in range(bytes_):
                    code = np.intp(codes[first + place])
                    for part in range(block):
                        out[(first + place) * block + part] = points[code * block + part] * scale

    return loop


def _polynomial(book: Codebook) -> Callable[..., None]:
    """A loop that computes the points; its three steps become vector instructions.

    It takes half of the time of `_lookup`, with AVX2 and with AVX-512.
    """
    group, run, half, once = book.group, book.run, RUN // 2, RUNS_AT_ONCE
    cubic, middle = np.float32(book.cubic), np.float32(128)

    def loop(codes, fine, coarse, scales, points, out):
        steps = np.empty(once * RUN, np.float32)
        for low in range(0, len(coarse), once):
            high = min(low + once, len(coarse))
            taken, weights = codes[low * run : high * run], out[low * run : high * run]
            for place in range(len(weights)):
                level = np.float32(taken[place]) - middle
                weights[place] = level + level * level * level * cubic
            for number in range(low, high):
                for place in range(half):
                    pair, first = fine[number * half + place], (number - low) * RUN + place
                    code = np.intp(coarse[number])
                    steps[first] = scales[(code + (pair & 15)) & 255]
                    steps[first + half] = scales[(code + (pair >> 4)) & 255]
            for place in range((high - low) * RUN):
                scale = steps[place]
                for part in range(group):
                    weights[place * group + part] *= scale

    return loop


def _compiled(loop: Callable[..., None], *, cache: bool) -> Callable[..., None]:
    """Machine code of a loop, made at once and kept on disk if asked for."""
    made = _numba().njit(nogil=True, error_model="numpy", cache=cache)(loop)
    bytes_, floats = np.empty(0, np.uint8), np.empty(0, np.float32)
    made(bytes_, bytes_, bytes_, floats, floats, floats)
    return made
