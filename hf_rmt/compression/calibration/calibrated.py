"""Compresses the layers of a model in groups, with calibration data.

Before a group is compressed, the model runs on the batches, and the second moments of the group's
inputs are measured (see `LayerMoments`). These inputs contain the errors of all earlier groups.
Groups also limit the memory. The moments of a group have at most as many entries as all compressed
weights together. Only a group whose layers all have the same input may have more. A transformer
block of usual shape needs two or three forward passes over the batches. With `size` (an argument of
`compress_calibrated`) it needs two or three times as many passes, with gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_rmt.checks import check_number
from hf_rmt.compression.apply import decide_shared
from hf_rmt.compression.calibration.batches import NO_BATCH, Batch, Batches, mappings
from hf_rmt.compression.calibration.calibrated_weight import (
    check_calibratable,
    compress_calibrated_weight,
)
from hf_rmt.compression.calibration.low_rank import LayerMoments, importance
from hf_rmt.compression.calibration.moments import Moments, Sites, sites
from hf_rmt.compression.calibration.ranks import shared_ranks
from hf_rmt.compression.decision import Decision, keep
from hf_rmt.compression.execution.parallel import (
    map_over_processes,
    matrix_cost,
    sum_over_processes,
)
from hf_rmt.compression.summary import compression_report
from hf_rmt.compression.weight import compress_weight
from hf_rmt.nn.counterparts import matrix_shape, weight_matrix
from hf_rmt.nn.dense_matrix import is_convolution
from hf_rmt.plan import Cause
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings

Seen = TypeVar("Seen")
NOT_REACHED = "no calibration: no batch reached the layer, or the layer is not linear"
"""The reason in the plan of a layer whose inputs could not be measured on the batches."""
WHOLE = "so many of its directions are worth keeping that factors would save no memory"
"""The reason in the plan of a layer that stays dense, as it would keep too many directions."""


def compress_calibrated(
    model: nn.Module,
    names: Sequence[str],
    settings: CompressionSettings,
    batches: Iterable[Batch],
    *,
    size: float | None = None,
    dry_run: bool = False,
) -> CompressionReport:
    """Compress layers of a model in place, so that their outputs on the batches change little.

    Args:
        model: Any module with its weights in memory, the same on every process.
        names: Names of layers with a weight matrix, as `select_layers` gives them.
        settings: The method and its options.
        batches: Keyword arguments of the model; each process may have its own batches.
        size: Share of the layers' parameters to keep, from which the number of singular values of
            each weight follows. None if the method finds this number.
        dry_run: Whether to only plan; the model is not changed then.

    Returns:
        The report, with the plan and the squared singular values of each weight, split into signal
        and noise.

    Raises:
        ValueError: If there is no batch, a layer's inputs or gradients hold nan or inf, or
            `check_calibratable` refuses the settings.
        RuntimeError: On every process, if one of several processes failed.
    """
    check_calibratable(settings)
    size = _checked_size(size, settings)
    batches = repeatable(batches)
    ranks = None if size is None else _ranks(model, names, batches, settings, size)
    decisions: dict[str, Any] = {}
    told = {"min_size": settings.min_size, "gradients": size is not None}
    for group, excited in measured(model, names, batches, **told):
        decide = _decision(excited, ranks)
        for plan, fit in decide_shared(model, group, settings, dry_run=dry_run, decide=decide):
            decisions[plan.name] = plan, fit
    decided = [decisions[name] for name in names]
    return compression_report(decided, model)


def repeatable(batches: Iterable[Batch]) -> Sequence[Batch] | Iterable[Batch]:
    """The batches as an object that can be iterated again; an iterator is read into memory.

    Raises:
        TypeError: If a batch is not a mapping, or `batches` itself is a mapping.
    """
    kept = list(batches) if isinstance(batches, Iterator) else batches
    if isinstance(kept, Sequence) or not hasattr(kept, "__iter__") or isinstance(kept, Mapping):
        return list(mappings(kept))
    for _ in islice(mappings(kept), 1):
        pass
    return Batches(kept)


def measured(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Batch],
    *,
    min_size: int,
    gradients: bool = False,
) -> Iterator[tuple[list[str], dict[str, LayerMoments]]]:
    """Give groups of layers, with the second moments of their inputs.

    `LayerMoments` explains second moments. A group is measured only when the caller's loop asks for
    it.

    Args:
        model: The model. If the caller compresses a group, later inputs contain its errors.
        names: Names of layers with a weight matrix.
        batches: Keyword arguments of the model; they are iterated once for each group.
        min_size: A layer is not measured if the smaller side of its weight is below this number.
        gradients: Whether to measure second moments of the gradients of the layers' outputs too.

    Yields:
        The names of the layers of a group, and the moments by name, for layers that some batch
        reaches. Layers that cannot be measured come in a last group, without moments.

    Raises:
        ValueError: If there is no batch, or a layer's inputs or gradients hold nan or inf.
    """
    linears = [name for name in names if _is_measurable(model.get_submodule(name), min_size)]
    found = _sites(model, linears, batches)
    entries = [math.prod(matrix_shape(model.get_submodule(name))) for name in names]
    for group in _groups(model, found, sum(entries), gradients=gradients):
        moments = Moments(model, group, gradients=gradients)
        yield list(moments.leaders), _gathered(moments, batches)
    rest = sorted(set(names) - set(linears), key=names.index)
    if rest:
        yield rest, {}


def _gathered(moments: Moments, batches: Iterable[Batch]) -> dict[str, LayerMoments]:
    """Run the model on the batches, and return the second moments of a group of layers by name.

    They describe the layers' inputs and the gradients of their outputs; see `LayerMoments`. The
    batches of all processes count.
    """

    def work() -> tuple[None, dict[str, Tensor]]:
        moments.gather(batches)
        return None, moments.tensors()

    sum_over_processes(work, doing="ran the model on the calibration")
    for key, tensor in moments.tensors().items():
        if not torch.isfinite(tensor).all():
            name, _, what = key.rpartition(" ")
            raise ValueError(
                f"the {'gradients' if what == 'gradients' else 'inputs'} of {name!r} hold nan or "
                "inf in calibration; check the batches and weights, or load the model in float32"
            )
    return moments.measured_moments()


def _sites(model: nn.Module, names: Sequence[str], batches: Iterable[Batch]) -> Sites:
    """Run the model on one batch, and group the layers that get the same input tensor in it."""
    return on_first_batch(batches, lambda batch: sites(model, names, batch))


def on_first_batch(batches: Iterable[Batch], look: Callable[[Batch], Seen]) -> Seen:
    """Call `look` on the first batch of every process; return what the first process found.

    Args:
        batches: Keyword arguments of the model; a process without batches is skipped.
        look: Called with a batch; returns what it finds out, but not None.

    Raises:
        ValueError: If no process has a batch.
        RuntimeError: On every process, if `look` failed on one of several processes.
    """

    def work() -> tuple[Seen | None, dict[str, Tensor]]:
        first = next(mappings(batches), None)
        return None if first is None else look(first), {}

    found, _ = sum_over_processes(work, doing="ran the model on the calibration")
    seen = [entry for entry in found if entry is not None]
    if not seen:
        raise ValueError(NO_BATCH)
    return seen[0]


def _groups(model: nn.Module, found: Sites, budget: int, *, gradients: bool) -> Iterator[Sites]:
    """Split layers into groups; the second moments of one group have at most `budget` entries.

    These moments are matrices, which `LayerMoments` explains: one for each input and, if wanted,
    one for the gradients of each layer's outputs. Layers with the same input stay in one group,
    even if their moments exceed the budget.
    """
    group: Sites = {}
    held = 0
    for first, names in found.items():
        shapes = [matrix_shape(model.get_submodule(name)) for name in names]
        entries = shapes[0][1] ** 2 + gradients * sum(rows**2 for rows, _ in shapes)
        if group and held + entries > budget:
            yield group
            group, held = {}, 0
        group, held = group | {first: names}, held + entries
    if group:
        yield group


def _is_measurable(module: nn.Module, min_size: int) -> bool:
    return not is_convolution(module) and min(matrix_shape(module)) >= min_size


def _ranks(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Batch],
    settings: CompressionSettings,
    size: float,
) -> dict[str, int | None]:
    """How many directions each layer keeps, by layer name; None for a layer that stays dense.

    A direction is a singular value with its vectors. Those whose loss costs most are kept. `size`
    is the share of the parameters of all layers that is kept.
    """
    worth: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, int]] = {}
    told = {"min_size": settings.min_size, "gradients": True}
    for group, excited in measured(model, names, batches, **told):
        reached = [name for name in group if name in excited]
        here = {name: matrix_shape(model.get_submodule(name)) for name in reached}
        worth |= _importances(model, here, excited)
        shapes |= here
    return shared_ranks(worth, shapes, size)


def _importances(
    model: nn.Module, shapes: Mapping[str, tuple[int, int]], excited: Mapping[str, LayerMoments]
) -> dict[str, Tensor]:
    """The cost of losing each direction (singular value with its vectors), by layer name.

    `low_rank.importance` explains the costs. The processes share the work.
    """

    def work(name: str) -> tuple[None, dict[str, Tensor]]:
        weight = weight_matrix(model.get_submodule(name))
        return None, {"importance": importance(weight, excited[name])}

    costs = [matrix_cost(shape) for shape in shapes.values()]
    device = next(model.parameters()).device
    outcomes = map_over_processes(work, list(shapes), costs, device=device)
    return {
        name: tensors["importance"] for name, (_, tensors) in zip(shapes, outcomes, strict=True)
    }


def _decision(
    excited: Mapping[str, LayerMoments], ranks: Mapping[str, int | None] | None
) -> Callable[[str, Tensor, CompressionSettings], Decision]:
    """The function that decides what happens to each weight of a group of layers.

    Args:
        excited: Second moments of the layers' inputs and gradients, by name; see `LayerMoments`.
        ranks: By name, the number of singular values (with their vectors) to keep, or None for a
            layer that stays dense. None in place of the mapping if the method finds the numbers.
    """

    def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        known = name in excited and (ranks is None or name in ranks)
        if known and (ranks is None or ranks[name] is not None):
            rank = None if ranks is None else ranks[name]
            return compress_calibrated_weight(name, weight, settings, excited[name], rank=rank)
        if ranks is not None and known:
            return keep(name, weight, Cause.ALL_WORTH, WHOLE)
        if ranks is not None:
            return keep(name, weight, Cause.NOT_REACHED, NOT_REACHED)
        return compress_weight(name, weight, settings).noted(NOT_REACHED)

    return decide


def _checked_size(size: float | None, settings: CompressionSettings) -> float | None:
    """Return `size` of `compress_calibrated`; raise an error if a size is set but noise is kept."""
    if size is None:
        return None
    share = check_number("size", size, "(0")
    if settings.noise != "drop" or settings.noise_removal != 1.0:
        raise ValueError(
            f"size needs the noise to be dropped completely, got "
            f"noise={settings.noise!r} and noise_removal={settings.noise_removal}; set "
            "noise='drop' and leave noise_removal at 1.0"
        )
    return share
