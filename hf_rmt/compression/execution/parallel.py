"""Matrices shared out over processes that each hold the whole model.

The longest work is given out first. Every process does its own part. Plain values go to all
processes at once. Then each tensor is sent by the process that owns it, one after the other. A
process that fails says so before any tensor is awaited, so that all fail with its message.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Sequence
from hashlib import sha256
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")
Item = TypeVar("Item")
WorkResult = tuple[Any, dict[str, Tensor]]
"""What work on one item gives: anything that can be pickled, and tensors by name."""

EIGEN_COST = 8
"""Time of an eigendecomposition per p^3, divided by the time of a Gram matrix per N p^2."""


def assign(costs: Sequence[float], n_processes: int) -> list[int]:
    """Give every piece of work to a process: longest first, each to the least busy one.

    Args:
        costs: Expected time of each piece, in any unit.
        n_processes: How many processes there are.

    Returns:
        The process of each piece, in [0, n_processes).

    Raises:
        ValueError: If there is no process.

    Source:
        Graham, SIAM J. Appl. Math. 17 (1969): at most 4/3 of the shortest makespan.

    Examples:
        >>> assign([3.0, 2.0, 2.0, 1.0], 2)
        [0, 1, 1, 0]
    """
    if n_processes < 1:
        raise ValueError(f"n_processes must be at least 1, got {n_processes}; use 1 to share none")
    busy = [(0.0, process) for process in range(n_processes)]
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, owners[piece] = busy[0]
        heapq.heapreplace(busy, (load + costs[piece], owners[piece]))
    return owners


def matrix_cost(shape: Sequence[int]) -> float:
    """Expected time to decompose a matrix: N p^2 for the Gram matrix, 8 p^3 for its eigenvectors.

    Args:
        shape: Of the matrix, in any orientation.

    Returns:
        The cost, in an arbitrary unit.
    """
    rows, columns = max(shape), min(shape)
    return float(rows * columns**2 + EIGEN_COST * columns**3)


def n_processes() -> int:
    """Processes of the default group of torch.distributed; 1 without one."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def map_over_processes(
    work: Callable[[Item], WorkResult],
    items: Sequence[Item],
    costs: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    alone: Callable[..., Iterable[WorkResult]] = map,
) -> Generator[WorkResult]:
    """Do the work for each item on one process, and give the outcome to all processes.

    Every process must ask for the same items in the same order. On one process each item is worked
    on when its outcome is asked for, unless `alone` does otherwise. On several processes, all items
    are worked on before the first outcome is returned.

    Args:
        work: Called with an item on the process that owns it.
        items: What to work on.
        costs: Expected time of each item, in any unit.
        device: Where tensors of other processes arrive; one that the process group can reach.
        alone: Called with the work and the items on one process; gives the outcomes in order.

    Yields:
        The outcome of each item, in order: equal on every process, bit for bit.

    Raises:
        RuntimeError: On every process, if the work failed on one; its message says where.
    """
    if n_processes() == 1:
        yield from alone(work, items)
        return
    owners = assign(costs, n_processes())
    rank = distributed.get_rank()
    mine = [item for item, owner in zip(items, owners, strict=True) if owner == rank]
    own, failure = _own_outcomes(work, mine)
    header = (_message(failure), [(plain, _layout(tensors)) for plain, tensors in own])
    headers: list[Any] = [None] * n_processes()
    distributed.all_gather_object(headers, header)
    _raise_for_all([message for message, _ in headers], failure)
    announced = [iter(outcomes) for _, outcomes in headers]
    held = iter(own)
    for owner in owners:
        plain, layout = next(announced[owner])
        tensors = next(held)[1] if owner == rank else _room(layout, device)
        yield plain, _broadcast(tensors, owner)


def sum_over_processes(work: Callable[[], WorkResult]) -> tuple[list[Any], dict[str, Tensor]]:
    """Do the same work on every process, each with its own data, and sum the tensors over all.

    Args:
        work: Gives tensors of the same names and shapes on every process.

    Returns:
        The plain values of each process, and the sums; both are equal on every process, bit for
        bit.

    Raises:
        RuntimeError: On every process, if the work failed on one; its message says where.
    """
    if n_processes() == 1:
        plain, tensors = work()
        return [plain], tensors
    own, failure = _own_outcomes(lambda _: work(), ["all processes"])
    header = (_message(failure), own[0][0] if own else None)
    headers: list[Any] = [None] * n_processes()
    distributed.all_gather_object(headers, header)
    _raise_for_all([message for message, _ in headers], failure)
    for tensor in own[0][1].values():
        distributed.all_reduce(tensor)
    return [plain for _, plain in headers], own[0][1]


def of_first(work: Callable[[], Value]) -> Value:
    """Do the same work on every process; all use the result of process 0, all fail if one fails.

    Args:
        work: Gives a value that can be pickled.

    Raises:
        RuntimeError: On every process, if the work failed on one of several.
    """
    processes = range(n_processes())
    outcomes = map_over_processes(lambda _: (work(), {}), processes, [1.0 for _ in processes])
    return next(value for value, _ in outcomes)


def agreed(model: Any, select: Callable[[], list[str]], settings: Any) -> list[str]:
    """The names of the layers, after a check that all processes are about to do the same work.

    Args:
        model: The model of this process.
        select: Finds the names. If it fails on one process, it fails on all.
        settings: What the user asked for on this process.

    Returns:
        The names, the same on every process.

    Raises:
        RuntimeError: On every process, if the work failed on one of several, or if layers, options
            or weights differ between them.
    """
    if n_processes() == 1:
        return select()

    def work() -> WorkResult:
        names = select()
        return (names, _evidence(model, names, settings)), {}

    found, _ = sum_over_processes(work)
    for key in found[0][1]:
        if len({str(evidence[key]) for _, evidence in found}) > 1:
            shown = "; ".join(f"process {rank}: {e[key]}" for rank, (_, e) in enumerate(found))
            raise RuntimeError(
                f"the processes differ in {key} ({shown}), so their models would be mixed; give "
                "each the same model and the same config"
            )
    names: list[str] = found[0][0]
    return names


def _evidence(model: Any, names: list[str], settings: Any) -> dict[str, Any]:
    """What must be the same on every process."""
    layers = {name: model.get_submodule(name) for name in names}
    weights = sha256()
    for layer in layers.values():
        raw = layer.weight.detach().cpu().contiguous().flatten().view(torch.uint8)
        weights.update(raw.numpy().tobytes())
    return {
        "layers": [(name, tuple(layer.weight.shape)) for name, layer in layers.items()],
        "options": settings.to_dict(),
        "weights": weights.hexdigest()[:12],
    }


def is_silent() -> bool | None:
    """Whether to hide the progress bar: True on all processes but the first; None: tqdm decides."""
    return True if n_processes() > 1 and distributed.get_rank() > 0 else None


def _own_outcomes(
    work: Callable[[Item], WorkResult], items: Sequence[Item]
) -> tuple[list[WorkResult], Exception | None]:
    """The outcomes of this process's items, and its error, so that it can go on to the others."""
    outcomes = []
    for item in items:
        try:
            plain, tensors = work(item)
        except Exception as error:
            error.add_note(f"while working on {item!r}")
            return [], error
        outcomes.append((plain, {key: value.contiguous() for key, value in tensors.items()}))
    return outcomes, None


def _message(failure: Exception | None) -> str:
    if failure is None:
        return ""
    notes = ", ".join(getattr(failure, "__notes__", []))
    return f"{type(failure).__name__}: {failure} ({notes})"


def _raise_for_all(messages: Sequence[str], own: Exception | None) -> None:
    failed = [f"process {rank}: {text}" for rank, text in enumerate(messages) if text]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(messages)} processes failed; {failed}") from own


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in tensors.items()}


def _room(
    layout: dict[str, tuple[torch.Size, torch.dtype]], device: torch.device | str
) -> dict[str, Tensor]:
    return {
        key: torch.empty(shape, dtype=dtype, device=device)
        for key, (shape, dtype) in layout.items()
    }


def _broadcast(tensors: dict[str, Tensor], owner: int) -> dict[str, Tensor]:
    """Send or receive tensors as bytes: backends do not know every dtype."""
    for tensor in tensors.values():
        if tensor.numel():
            distributed.broadcast(tensor.view(-1).view(torch.uint8), src=owner)
    return tensors
