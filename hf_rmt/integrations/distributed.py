"""Matrices shared out over processes that each hold the whole model.

The longest work is given out first. Every process does its own part; what is plain goes to all
of them at once, tensors follow from their owner one after the other. A process that fails says
so before any tensor is awaited, so that all fail with its message.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from tqdm.auto import tqdm

from hf_rmt.compression import CompressedWeight, compress_weight, compression_report
from hf_rmt.integrations.loader import place_step
from hf_rmt.nn.matrices import compressed_like, matrix_shape, set_matrix, weight_matrix
from hf_rmt.plan import LayerPlan
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit

Item = TypeVar("Item")
Outcome = tuple[Any, dict[str, Tensor]]
"""What work on one item gives: anything that can be pickled, and tensors by name."""
Decide = Callable[[str, Tensor, CompressionSettings], CompressedWeight]

SHIFT = "bias_shift"
"""Name of what a layer's bias gains, among the tensors of a decision."""
EIGEN_COST = 8
"""Time of an eigendecomposition over p^3 in units of that of a Gram matrix over N p^2."""


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


def share(
    work: Callable[[Item], Outcome],
    items: Sequence[Item],
    costs: Sequence[float],
    *,
    device: torch.device | str = "cpu",
) -> Iterator[Outcome]:
    """Do a piece of work for each item on one process, and have the outcome on all.

    Every process must ask for the same items in the same order. On one process each item is
    worked on when its outcome is asked for; on several, all are before the first is returned.

    Args:
        work: Called with an item on the process that owns it.
        items: What to work on.
        costs: Expected time of each item, in any unit.
        device: Where tensors of other processes arrive; one that the process group can reach.

    Yields:
        The outcome of each item, in order: equal on every process, bit for bit.

    Raises:
        RuntimeError: On every process, if the work failed on one; its message says where.
    """
    if n_processes() == 1:
        yield from map(work, items)
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


def compress_shared(
    model: Any,
    names: Sequence[str],
    settings: CompressionSettings,
    *,
    dry_run: bool = False,
    decide: Decide = compress_weight,
) -> CompressionReport:
    """Compress layers of a model in place, and report; see `decide_shared`."""
    decisions = decide_shared(model, names, settings, dry_run=dry_run, decide=decide)
    return compression_report(decisions, model)


def decide_shared(
    model: Any,
    names: Sequence[str],
    settings: CompressionSettings,
    *,
    dry_run: bool = False,
    decide: Decide = compress_weight,
) -> list[tuple[LayerPlan, SpectrumFit | None]]:
    """Compress layers of a model in place, the layers shared out over the processes.

    On one process there is one weight in flight at a time.

    Args:
        model: Any module with its weights in memory, the same on every process.
        names: Layers with a matrix, as `select_layers` gives them.
        settings: What the user asked for.
        dry_run: Only plan; the model is not changed.
        decide: What happens to one weight.

    Returns:
        The plan of each layer, with its fitted spectrum.

    Raises:
        RuntimeError: On every process, if one of them failed.
    """

    def work(name: str) -> Outcome:
        weight = weight_matrix(model.get_submodule(name))
        result = decide(name, weight, settings)
        return (result.plan, result.fit), {} if dry_run else stored_tensors(result, weight)

    layers = [model.get_submodule(name) for name in names]
    costs = [matrix_cost(matrix_shape(layer)) for layer in layers]
    device = layers[0].weight.device if layers else "cpu"
    decisions = []
    outcomes = share(work, names, costs, device=device)
    title = "Planning" if dry_run else "Compressing"
    for decision, tensors in tqdm(outcomes, title, len(names), disable=is_silent()):
        decisions.append(decision)
        if not dry_run:
            replace_layer(model, decision[0], tensors)
    return decisions


def stored_tensors(result: CompressedWeight, weight: Tensor) -> dict[str, Tensor]:
    """Tensors of the layer that was decided on for a matrix; none for one that stays as it is."""
    if result.plan.compressed:
        layer = result.module(weight, None)
        return dict(layer.state_dict()) | _bias_shift(result, weight, layer.dense)
    if result.filtered is None:
        return {}
    return {"weight": result.filtered} | _bias_shift(result, weight, result.filtered.clone)


def _bias_shift(
    result: CompressedWeight, weight: Tensor, new: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """What the bias gains so that the mean output stays, (W - W') E[x], where E[x] is known."""
    if result.mean_input is None or result.bias_shift is not None:
        return {} if result.bias_shift is None else {SHIFT: result.bias_shift}
    return {SHIFT: (weight.float() - new().float()) @ result.mean_input.float()}


def replace_layer(model: Any, plan: LayerPlan, tensors: dict[str, Tensor]) -> None:
    """Replace a dense layer, or its weight, by the tensors of a decision; its bias stays."""
    dense = model.get_submodule(plan.name)
    if (shift := tensors.pop(SHIFT, None)) is not None:
        dense.bias.data.add_(shift)
    if not plan.compressed:
        if tensors:
            set_matrix(dense, tensors["weight"])
        return
    layer = compressed_like(dense, plan.kind, plan.rank, plan.noise, device="meta")
    layer.bias = None
    layer.load_state_dict(tensors, assign=True)
    layer.bias = dense.bias
    model.set_submodule(plan.name, layer)
    if plan.step is not None:
        place_step(model, plan.name, plan.step)


def together(work: Callable[[], Outcome]) -> tuple[list[Any], dict[str, Tensor]]:
    """Do the same on every process with its own data, and have the sums of the tensors on all.

    Args:
        work: Gives tensors of the same names and shapes on every process.

    Returns:
        What is plain of every process, and the sums, equal on every process bit for bit.

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


def is_silent() -> bool | None:
    """Whether to hide the progress bar: on all processes but the first, or as tqdm thinks."""
    return True if n_processes() > 1 and distributed.get_rank() > 0 else None


def _own_outcomes(
    work: Callable[[Item], Outcome], items: Sequence[Item]
) -> tuple[list[Outcome], Exception | None]:
    """Outcomes of this process's items, and what stopped it; every process must go on to meet."""
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
