"""Carrying decisions out: the layers of a model replaced, shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from hf_rmt.compression.parallel import Outcome, is_silent, matrix_cost, share
from hf_rmt.compression.summary import compression_report
from hf_rmt.compression.weight import CompressedWeight, compress_weight
from hf_rmt.nn.counterparts import (
    compressed_like,
    matrix_shape,
    place_step,
    set_matrix,
    weight_matrix,
)
from hf_rmt.plan import LayerPlan
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit

Decide = Callable[[str, Tensor, CompressionSettings], CompressedWeight]

SHIFT = "bias_shift"
"""Name of what a layer's bias gains, among the tensors of a decision."""


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
