"""Works on several small weights at a time, each with one thread, in bounded memory.

A second thread gains little on the matrices of a small transformer: their eigendecompositions and
their rounding to few bits consist of many short operations. Several weights at once keep the
processor busy instead. The result for a small weight then has the same bits for any number of
threads. Otherwise the last bits of an eigendecomposition depend on how many threads share it. A
large weight has all threads to itself, so that no other weight is worked on at the same time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from hf_rmt.compression.lapack import numpy_threads
from hf_rmt.nn.counterparts import matrix_shape
from hf_rmt.settings import CompressionSettings, method_of

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

SMALL_SIDE, SMALL_ENTRIES = 1024, 2**22
"""One thread alone works on a weight if its shorter side and its number of entries are at most
these. At 2048 x 2048 two threads decompose one weight 1.6 times as fast as one thread does; at 768
x 3072, 1.0 times."""
IN_FLIGHT = 2**24
"""The most entries of all weights that are worked on, or whose results wait, at one time."""


def is_small(shape: Sequence[int]) -> bool:
    """Whether a weight of a given shape is so small that one thread works on it."""
    return min(shape) <= SMALL_SIDE and math.prod(shape) <= SMALL_ENTRIES


@contextmanager
def suited_threads(shape: Sequence[int]) -> Iterator[None]:
    """A context in which torch and NumPy use one thread for a small weight, or all for a large one.

    Args:
        shape: Shape of the weight; `is_small` decides whether it is small.
    """
    threads = torch.get_num_threads()
    suited = 1 if is_small(shape) else threads
    if suited < threads:
        torch.set_num_threads(suited)
    try:
        with numpy_threads(suited):
            yield
    finally:
        if suited < threads:
            torch.set_num_threads(threads)


def layer_map(
    layers: Sequence[nn.Module], settings: CompressionSettings
) -> Callable[..., Generator[Any]]:
    """Make a function that does work on layers, one after the other or several at the same time.

    Args:
        layers: One layer for each item of the later work, in the order of the items.
        settings: The settings; their method says whether it can work on several weights at a time.

    Returns:
        `map_over_threads` with its other arguments set, so that it takes the work and the items. It
        works on one item at a time if a layer is not on the CPU, or if the method asks for that.
    """
    tensors = chain.from_iterable(layer.parameters() for layer in layers)
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return partial(
        map_over_threads,
        shapes=[matrix_shape(layer) for layer in layers],
        concurrent=on_cpu and method_of(settings).concurrent,
    )


def map_over_threads(
    work: Callable[[Item], Outcome],
    items: Sequence[Item],
    shapes: Sequence[Sequence[int]],
    *,
    concurrent: bool = True,
) -> Generator[Outcome]:
    """Do the work for each item, for several items at a time if their weights are small.

    Small weights that follow each other are worked on at the same time, each by one thread. Their
    total number of entries is at most `torch.get_num_threads()` times that of the largest small
    weight, and at most `IN_FLIGHT`. A finished item counts until its outcome is handed out, because
    it takes memory until then.

    Close the iterator if you stop before its end. Closing cancels work that has not begun, waits
    for work that has begun, and restores the number of threads of torch.

    Args:
        work: Called with an item, on any thread; it must not change data of other items.
        items: What to work on.
        shapes: The shape of the weight of each item.
        concurrent: Whether the work can be done for several items at a time.

    Yields:
        The outcome of each item, in order. If the work on an item fails, its error is raised after
        the outcomes of the items before it were returned.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not concurrent or not _is_plain_thread():
        for item, shape in zip(items, shapes, strict=True):
            with suited_threads(shape):
                outcome = work(item)
            yield outcome
            del outcome  # or it would stay in memory beside the next one
        return
    sizes = [math.prod(shape) if is_small(shape) else 0 for shape in shapes]
    room = min(threads * max(sizes, default=0), IN_FLIGHT)
    waiting: deque[tuple[int, Future[Outcome]]] = deque()
    with _workers(threads) as pool:
        for item, size in zip(items, sizes, strict=True):
            held = sum(entries for entries, _ in waiting)
            while waiting and (not size or waiting[0][1].done() or held + size > room):
                held -= waiting[0][0]
                yield _first(waiting, threads)
            if size:
                waiting.append((size, pool.submit(copy_context().run, work, item)))
            else:
                with numpy_threads(threads):
                    outcome = work(item)
                yield outcome
                del outcome
        while waiting:
            yield _first(waiting, threads)


def _first(waiting: deque[tuple[int, Future[Outcome]]], threads: int) -> Outcome:
    """Take the oldest piece of work from the queue, wait until it is done, and return its result.

    So the queue keeps no reference to the result, and its memory can be freed.
    """
    outcome = waiting.popleft()[1].result()
    torch.set_num_threads(threads)  # a new thread takes the number that was set last, in any thread
    return outcome


@contextmanager
def _workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A context with a pool of `threads` threads; in each, torch and NumPy use only this thread.

    At its end, work that has not begun is cancelled, and torch has `threads` threads again.
    """
    pool = ThreadPoolExecutor(threads, "hf_rmt", _prepare, (torch.is_grad_enabled(),))
    try:
        with numpy_threads(1):
            yield pool
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:
            torch.set_num_threads(threads)


def _prepare(grad: bool) -> None:
    """Set up torch on a new thread of a pool: one thread for torch, and gradients on or off.

    Torch keeps these settings separately for each Python thread.
    """
    torch.get_num_threads()  # on its first call, a thread takes the number that was set last
    torch.set_num_threads(1)
    torch.set_grad_enabled(grad)


def _is_plain_thread() -> bool:
    """Whether new threads can work in the same way as the current thread.

    This is so if no torch mode such as autocast is set, and torch uses OpenMP.
    """
    return not (
        torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.get_default_device().type != "cpu"
        or "OpenMP" not in torch.__config__.parallel_info()
    )
