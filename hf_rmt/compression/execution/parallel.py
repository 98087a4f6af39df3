"""Shares out the work on matrices over processes that each hold the whole model.

The longest work is given out first. Every process does its own part. Then plain values go to all
processes at once. After that, tensors are sent one after the other, each by the process that made
it. A process that fails reports this before any tensor is sent. Then all processes raise an error
with the message of this failure.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from hf_rmt.compression.execution.rendezvous import (
    Failure,
    begin_transfers,
    exchange,
    n_processes,
)

Value = TypeVar("Value")
Item = TypeVar("Item")
WorkResult = tuple[Any, dict[str, Tensor]]
"""The result of work on one item: anything that can be pickled, and tensors by name."""
TensorLayout = dict[str, tuple[torch.Size, torch.dtype]]
"""Shapes and dtypes of tensors, by name."""

EIGEN_COST = 8
"""To decompose an N x p matrix takes N p^2 operations for the Gram matrix and p^3 operations for
its eigenvectors. An operation of the second kind takes this many times as long as one of the first
kind."""


def assign(costs: Sequence[float], n_processes: int) -> list[int]:
    """Give every piece of work to a process: longest piece first, each to the least busy process.

    Args:
        costs: Expected time of each piece, in any unit.
        n_processes: How many processes there are.

    Returns:
        The process of each piece, in [0, n_processes).

    Raises:
        ValueError: If there is no process.

    Source:
        Graham, SIAM J. Appl. Math. 17 (1969): the last process ends after at most 4/3 of the
        shortest possible time.

    Examples:
        >>> assign([3.0, 2.0, 2.0, 1.0], 2)
        [0, 1, 1, 0]
    """
    if n_processes < 1:
        raise ValueError(
            f"n_processes must be at least 1, got {n_processes}; use 1 if there is only one process"
        )
    busy = [(0.0, process) for process in range(n_processes)]
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, owners[piece] = busy[0]
        heapq.heapreplace(busy, (load + costs[piece], owners[piece]))
    return owners


def matrix_cost(shape: Sequence[int]) -> float:
    """Expected time to decompose a matrix X: N p^2 for X'X, and 8 p^3 for its eigenvectors.

    X' is the transpose. N is the longer side of the matrix and p the shorter one.

    Args:
        shape: Shape of the matrix or of its transpose.

    Returns:
        The cost, in an arbitrary unit.
    """
    rows, columns = max(shape), min(shape)
    return float(rows * columns**2 + EIGEN_COST * columns**3)


def map_over_processes(
    work: Callable[[Item], WorkResult],
    items: Sequence[Item],
    costs: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    alone: Callable[..., Iterable[WorkResult]] = map,
    doing: str = "",
) -> Generator[WorkResult]:
    """Do the work for each item on one process, and give the outcome to all processes.

    Every process must ask for the same items in the same order. If there is only one process,
    `alone` decides when the work is done; by default, when an outcome is asked for. If there are
    several processes, all work is done before the first outcome is returned.

    Args:
        work: Called with an item, on one process. Returns a plain value, which can be pickled, and
            a dict of tensors. This pair is the outcome.
        items: What to work on.
        costs: Expected time of each item, in any unit.
        device: The device that receives tensors from other processes; the process group must
            support it.
        alone: Called with the work and the items if there is only one process; gives the outcomes
            in order.
        doing: What a process does here, such as "ran evaluate", for the error message. By default
            the message names the item.

    Yields:
        The outcome of each item, in order: equal on every process, bit for bit.

    Raises:
        RuntimeError: On every process, if the work failed on one; the message says on which.
    """
    if n_processes() == 1:
        yield from alone(work, items)
        return
    owners = assign(costs, n_processes())
    rank = distributed.get_rank()
    mine = [item for item, owner in zip(items, owners, strict=True) if owner == rank]
    own, failure = _own_outcomes(work, mine, doing)
    headers = exchange([(plain, _layout(tensors)) for plain, tensors in own], failure)
    # not `yield from`, because closing this generator must leave the transfers to be finished
    for outcome in begin_transfers(_transfers(own, headers, owners, device)):  # noqa: UP028
        yield outcome


def sum_over_processes(
    work: Callable[[], WorkResult], *, doing: str
) -> tuple[list[Any], dict[str, Tensor]]:
    """Do the same work on every process, each with its own data, and sum the tensors over all.

    Args:
        work: Returns a pair: a plain value, which is no tensor, and a dict of tensors that has the
            same names and shapes on every process.
        doing: What a process does here, for the error message, such as "ran evaluate".

    Returns:
        The plain value of each process, in a list, and the sums of the tensors; both are equal on
        every process, bit for bit.

    Raises:
        RuntimeError: On every process, if the work failed on one; the message says on which.
    """
    if n_processes() == 1:
        plain, tensors = work()
        return [plain], tensors
    own, failure = _own_outcomes(lambda _: work(), [None], doing)
    plain_values = exchange(own[0][0] if own else None, failure)
    for tensor in own[0][1].values():
        distributed.all_reduce(tensor)
    return plain_values, own[0][1]


def of_first(work: Callable[[], Value], *, doing: str) -> Value:
    """Do the same work on every process, and give the result of process 0 to all of them.

    Args:
        work: Gives a value that can be pickled.
        doing: What a process does here, for the error message, such as "ran evaluate".

    Raises:
        RuntimeError: On every process, if the work failed on one of several.
    """
    if n_processes() == 1:
        return work()
    own, failure = _own_outcomes(lambda _: (work(), {}), [None], doing)
    first: Value = exchange(own[0][0] if own else None, failure)[0]
    return first


def is_silent() -> bool | None:
    """Whether to hide the progress bar: True except on process 0, where None lets tqdm decide."""
    return True if n_processes() > 1 and distributed.get_rank() > 0 else None


def _own_outcomes(
    work: Callable[[Item], WorkResult], items: Sequence[Item], doing: str
) -> tuple[list[WorkResult], Failure | None]:
    """Do the work for each item in this process; return the results, and the failure or None.

    After an error there are no results. The caller then reports the failure to the other
    processes.
    """
    outcomes = []
    for item in items:
        try:
            plain, tensors = work(item)
        except Exception as error:
            return [], Failure(error, doing or f"worked on {item!r}")
        outcomes.append((plain, {key: value.contiguous() for key, value in tensors.items()}))
    return outcomes, None


def _transfers(
    own: list[WorkResult],
    headers: Sequence[list[tuple[Any, TensorLayout]]],
    owners: Sequence[int],
    device: torch.device | str,
) -> Iterator[WorkResult]:
    """Give the results for all items in order, while the processes send each other the tensors.

    `owners` names the process that did the work on each item. That process sends the tensors of
    the result, and the others receive them. The plain values and the tensors' shapes (`headers`)
    were exchanged before.
    """
    rank = distributed.get_rank()
    announced = [iter(outcomes) for outcomes in headers]
    held = iter(own)
    for owner in owners:
        plain, layout = next(announced[owner])
        tensors = next(held)[1] if owner == rank else _room(layout, device)
        yield plain, _broadcast(tensors, owner)


def _layout(tensors: dict[str, Tensor]) -> TensorLayout:
    return {key: (value.shape, value.dtype) for key, value in tensors.items()}


def _room(layout: TensorLayout, device: torch.device | str) -> dict[str, Tensor]:
    return {
        key: torch.empty(shape, dtype=dtype, device=device)
        for key, (shape, dtype) in layout.items()
    }


def _broadcast(tensors: dict[str, Tensor], owner: int) -> dict[str, Tensor]:
    """Send tensors to the other processes, or receive them if `owner` is another process.

    They are sent as bytes, because the backends of torch.distributed do not support every dtype.
    """
    for tensor in tensors.values():
        if tensor.numel():
            distributed.broadcast(tensor.view(-1).view(torch.uint8), src=owner)
    return tensors
