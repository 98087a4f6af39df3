"""Compiles loops that pack, unpack and multiply noise with Numba, and runs them on threads.

Noise is a weight minus its low-rank signal; `NoiseStore` explains how it is packed. Numba is
optional (`pip install "hf_rmt[fast]"`). Without it, torch does the work.
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
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rmt.nn.stores.codebooks import CODEBOOKS, SCALES

logger = logging.getLogger(__name__)

PART = 2**17
"""Work is shared out among threads only in parts of at least this many weights. To unpack one such
part takes 80 to 100 microseconds, and to pass two such parts to threads takes 50 microseconds."""


def can_read(tensor: Tensor) -> bool:
    """Whether loops compiled by Numba can read a tensor.

    They can if Numba works, the tensor lies on the CPU, and torch neither compiles the code nor
    transforms it, as with `vmap`.

    Args:
        tensor: Codes of a packed `NoiseStore`, or weights that are to be packed.
    """
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and has_numba()


def has_numba() -> bool:
    """Whether Numba is installed and can be imported."""
    return numba() is not None


@cache
def numba() -> Any:
    """The Numba module; None if it is missing or does not fit the other packages."""
    if find_spec("numba") is None:
        return None
    try:
        import numba
    except (ImportError, SystemError) as error:
        logger.warning(
            "numba cannot be imported, so torch unpacks the noise, which is slower; install a "
            "version of numba that fits the other packages, or uninstall numba: %s",
            error,
        )
        return None
    return numba


def compiled(
    loop: Callable[..., None], kind: str, *example: Any, **options: Any
) -> Callable[..., None]:
    """Machine code of a Python loop, compiled now and, if possible, kept on disk.

    Numba names the file on disk after the loop, and numbers the loops of the same name. Two
    processes that start together can give the same number to two loops, and a later process would
    run the wrong loop. So this function gives each loop a name of its own.

    Args:
        loop: A function with a loop; it is renamed.
        kind: A kind of `NoiseStore`, such as `int8`, which becomes part of the name.
        *example: Arguments with the types for which it is compiled; the loop runs once with them.
        **options: Options of `numba.njit`.
    """
    loop.__qualname__ = f"{kind}-{_target()}"
    try:
        return _compiled(loop, example, cache=True, **options)
    except Exception as error:  # the cache cannot be written, or a file in it is damaged
        logger.debug("Numba's cache cannot be used, so this process compiles anew: %s", error)
        return _compiled(loop, example, cache=False, **options)


def _compiled(loop: Callable[..., None], example: Any, **options: Any) -> Callable[..., None]:
    made = numba().njit(nogil=True, error_model="numpy", **options)(loop)
    made(*example)
    return made


@cache
def _target() -> str:
    """A short text that identifies the kind of the processor and the version of Numba."""
    from numba.core.registry import cpu_target

    processor = cpu_target.target_context.codegen().magic_tuple()
    return sha256(repr((processor, numba().__version__)).encode()).hexdigest()[:16]


def callable_in_loops(function: Callable[..., None], **options: Any) -> Callable[..., None]:
    """Make a function callable in loops that Numba compiles, and return it.

    Args:
        function: The function. Its machine code is kept on disk with that of the loop.
        **options: Options of `numba.njit`.
    """
    from numba.extending import register_jitable

    return register_jitable(error_model="numpy", **options)(function)


def shared_out(work: Callable[[int, int], None], size: int, weights: int) -> None:
    """Call work(first, last) for slices of `range(size)`, on as many threads as torch may use.

    Args:
        work: A function that does the work of a slice. It must not hold the interpreter's lock.
        size: Number of units of work, such as rows.
        weights: Number of weights in all units. If they are few, one thread does all the work.
    """
    parts = min(torch.get_num_threads(), weights // PART, size)
    if parts < 2:
        work(0, size)
        return
    ends = [size * part // parts for part in range(parts + 1)]
    list(pool(os.getpid()).map(work, ends, ends[1:]))


@cache
def pool(process: int) -> ThreadPoolExecutor:
    """The thread pool of the process with this id.

    Each process has its own pool, because a forked process has none of its parent's threads.
    """
    return ThreadPoolExecutor(os.cpu_count(), "hf_rmt_noise")


@cache
def points(kind: str) -> Any:
    """The numbers that each of the 256 possible bytes stands for: weights divided by their scale.

    `kind` is a packed kind of `NoiseStore`, such as `int8`. The result is flat float32, with 0 for
    bytes that are never used.
    """
    book = CODEBOOKS[kind]
    values = np.zeros((256, book.block), dtype=np.float32)
    values[: len(book.points)] = np.asarray(book.points).reshape(-1, book.block)
    return values.ravel()


@cache
def scales() -> Any:
    """The scale that each of the 256 scale codes stands for, divided by the largest scale.

    `NoiseStore` explains scales and their codes. The result is float32, shape (256,).
    """
    return np.asarray(SCALES, dtype=np.float32)


def largest(base: Tensor) -> Any:
    """The largest scale of a packed weight, float32, shape (1,).

    Args:
        base: The bits of the largest scale, as in `NoiseStore.base`.
    """
    return base.numpy().view(np.float32)
