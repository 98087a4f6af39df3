"""Decides what happens to each layer of a model and does it; all processes share the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_rmt.compression.decision import Decision, SpikedBuild, keep
from hf_rmt.compression.execution.parallel import (
    WorkResult,
    is_silent,
    map_over_processes,
    matrix_cost,
)
from hf_rmt.compression.execution.threads import layer_map
from hf_rmt.compression.summary import compression_report
from hf_rmt.compression.weight import compress_weight, energies, energy_of_product
from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.counterparts import matrix_shape, place_step, weight_matrix
from hf_rmt.nn.dense_matrix import set_matrix
from hf_rmt.nn.layers.compressed_layer import CompressedLayer, compressed_like
from hf_rmt.nn.memory import trim_memory
from hf_rmt.nn.swap import swap_module, why_not_swapped
from hf_rmt.plan import Cause, LayerPlan, Outcome
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit

Decide = Callable[[str, Tensor, CompressionSettings], Decision]

_JOURNAL: ContextVar[list[tuple[LayerPlan, SpectrumFit | None]] | None] = ContextVar(
    "journal", default=None
)
SHIFT = "bias_shift"
"""Key in the dicts of tensors that `carried_out` returns: what is added to the layer's bias."""
NEW_WEIGHT = "weight"
"""Key in the dicts of tensors that `carried_out` returns: the layer's new dense weight."""


class Journal:
    """A context manager that records the changes to layers, to report them after an error.

    Attributes:
        decisions: A pair (plan, None) for each layer changed so far, in the order of the changes.
            The plan says what was done. None stands for the singular values of the weight, which
            are not recorded.
    """

    def __init__(self) -> None:
        self.decisions: list[tuple[LayerPlan, SpectrumFit | None]] = []

    def __enter__(self) -> Journal:
        self._token = _JOURNAL.set(self.decisions)
        return self

    def __exit__(self, *error: object) -> None:
        _JOURNAL.reset(self._token)


def compress_shared(
    model: Any,
    names: Sequence[str],
    settings: CompressionSettings,
    *,
    dry_run: bool = False,
    decide: Decide = compress_weight,
) -> CompressionReport:
    """Compress layers in place and return the report; `decide_shared` explains the arguments."""
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
    """Compress layers of a model in place; the layers are shared out over the processes.

    If there is only one process, it works on one large weight at a time, or on several small
    weights; see `hf_rmt.compression.execution.threads`.

    Args:
        model: Any module with its weights in memory, the same on every process.
        names: Names of layers with a weight matrix, as `select_layers` gives them.
        settings: The method and its options.
        dry_run: Whether to only plan; the model is not changed then.
        decide: The function that decides what happens to one weight.

    Returns:
        A pair for each layer: its plan, and its fitted spectrum (the squared singular values of the
        weight, split into signal and noise) or None if there is no fit.

    Raises:
        RuntimeError: On every process, if one process failed.
    """
    made: dict[str, CompressedLayer | None] = {}

    def work(name: str) -> WorkResult:
        layer = model.get_submodule(name)
        weight = weight_matrix(layer)
        if reason := why_not_swapped(layer):  # something was added after the layers were chosen
            return (keep(name, weight, Cause.CARRIES, reason).plan, None), {}
        decision = decide(name, weight, settings)
        plan, tensors = decision.plan, dict[str, Tensor]()
        if not dry_run:
            made[name], tensors = carried_out(decision, weight)
            plan = with_rounding(decision, weight, made[name])
        return (plan, decision.fit), tensors

    layers = [model.get_submodule(name) for name in names]
    costs = [matrix_cost(matrix_shape(layer)) for layer in layers]
    device = layers[0].weight.device if layers else "cpu"
    decisions = []
    alone = layer_map(layers, settings) if decide is compress_weight else map
    outcomes = map_over_processes(work, names, costs, device=device, alone=alone)
    title = "Planning" if dry_run else "Compressing"
    with closing(outcomes):
        for decision, tensors in tqdm(outcomes, title, len(names), disable=is_silent()):
            decisions.append(decision)
            if not dry_run:
                plan = decision[0]
                apply_plan(model, plan, tensors, layer=made.pop(plan.name, None))
    return decisions


def apply_decision(model: Any, decision: Decision, weight: Tensor) -> LayerPlan:
    """Carry out a decision on one layer of a model in this process.

    Args:
        model: The model.
        decision: What happens to the layer.
        weight: The dense weight of the layer, shape (out, in).

    Returns:
        The plan of the layer. If the noise of the weight (see `SpikedLinear`) is stored in few
        bits, the plan has the measured rounding error.
    """
    layer, tensors = carried_out(decision, weight)
    plan = with_rounding(decision, weight, layer)
    apply_plan(model, plan, tensors, layer=layer)
    return plan


def with_rounding(decision: Decision, weight: Tensor, layer: CompressedLayer | None) -> LayerPlan:
    """The plan of a decision, with the signal energy and rounding error measured on the new layer.

    The signal is the product of the layer's factors, and the noise is the rest of the weight. The
    signal energy is the squared norm of the signal, divided by that of the weight. Calibration may
    change the signal after the noise is rounded to few bits, so both numbers are measured at the
    end. The option `recover_spikes` shrinks the signal; this change does not count as rounding
    error. If no noise is rounded, the plan is returned as it is.

    Args:
        decision: What happens to the layer.
        weight: The dense weight of the layer, shape (out, in).
        layer: The new layer; None if the dense layer is not replaced.
    """
    plan, build = decision.plan, decision.build
    if not isinstance(layer, SpikedLinear) or not plan.rounds:
        return plan
    left, right = (factor.detach() for factor in layer.factors())
    packed = layer.dense().detach()
    if isinstance(build, SpikedBuild) and (taken := build.recovered()) is not None:
        packed = packed + taken
    whole, _, lost = energies(weight, packed)
    stored = energy_of_product(left, right)
    return replace(plan, signal_energy=stored / whole, rounding_error=lost / whole)


def carried_out(
    decision: Decision, weight: Tensor
) -> tuple[CompressedLayer | None, dict[str, Tensor]]:
    """Make the new layer of a decision, and the tensors that other processes need to make it too.

    Args:
        decision: What happens to the layer.
        weight: The dense weight of the layer, shape (out, in).

    Returns:
        A pair: the new layer (None if the dense layer is not replaced), and the tensors by name.
    """
    if decision.plan.outcome is Outcome.REPLACED:
        layer: CompressedLayer = decision.layer(weight)
        return layer, dict(layer.state_dict()) | _bias_shift(decision, weight, layer.dense)
    if decision.rewritten is None:
        return None, {}
    shift = _bias_shift(decision, weight, decision.rewritten.clone)
    return None, {NEW_WEIGHT: decision.rewritten} | shift


def _bias_shift(decision: Decision, weight: Tensor, new: Callable[[], Tensor]) -> dict[str, Tensor]:
    """A dict with the tensor that is added to the bias, so that the mean output stays the same.

    If the decision holds a shift, this one is returned. Otherwise the shift is (W - V) E[x], where
    W is the old weight, V the new weight and E[x] the mean input of the layer. If the decision
    holds no mean input either, the dict is empty.
    """
    if decision.mean_input is None or decision.bias_shift is not None:
        return {} if decision.bias_shift is None else {SHIFT: decision.bias_shift}
    return {SHIFT: (weight.float() - new().float()) @ decision.mean_input.float()}


def apply_plan(
    model: Any,
    plan: LayerPlan,
    tensors: dict[str, Tensor],
    *,
    layer: CompressedLayer | None = None,
) -> None:
    """Replace a layer, or rewrite its weight, as a plan says. The bias stays the same object.

    Args:
        model: The model.
        plan: The plan of the layer.
        tensors: The tensors of the decision, as `carried_out` gives them.
        layer: The new layer if this process has made it; None to make it from the tensors.
    """
    dense = model.get_submodule(plan.name)
    tensors = dict(tensors)
    if plan.outcome is not Outcome.KEPT:
        _out_of_inference_mode(dense)
    if (shift := tensors.pop(SHIFT, None)) is not None:
        dense.bias.data.add_(shift)
    if plan.outcome is Outcome.REWRITTEN:
        set_matrix(dense, tensors[NEW_WEIGHT])
    if plan.outcome is Outcome.REPLACED:
        _replace(model, plan, dense, tensors, layer)
    if plan.outcome is not Outcome.KEPT:
        note_done(plan)
        trim_memory()


def _out_of_inference_mode(layer: nn.Module) -> None:
    """Replace the parameters of a layer that are inference tensors by normal copies.

    Torch can neither change nor train a parameter that was made in inference mode.
    """
    for key, parameter in layer._parameters.items():
        if parameter is not None and parameter.is_inference():
            copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            copied.__dict__.update(vars(parameter))
            layer._parameters[key] = copied


def _replace(
    model: Any,
    plan: LayerPlan,
    dense: Any,
    tensors: dict[str, Tensor],
    layer: CompressedLayer | None,
) -> None:
    if layer is None or not layer.stands_for(dense):  # for a convolution, `layer` is linear
        layer = compressed_like(dense, plan.kind, plan.rank, plan.noise, device="meta")
        layer.bias = None
        layer.load_state_dict(tensors, assign=True)
    layer.bias = dense.bias
    layer.dense_class = type(dense)
    swap_module(model, plan.name, layer)
    if plan.step is not None:
        place_step(model, plan.name, plan.step)


@contextmanager
def unnoted() -> Iterator[None]:
    """A context in which no `Journal` records changes to layers, because they may be undone."""
    token = _JOURNAL.set(None)
    try:
        yield
    finally:
        _JOURNAL.reset(token)


def note_done(plan: LayerPlan) -> None:
    """Record in the active `Journal`, if there is one, what was done to a layer."""
    noted = _JOURNAL.get()
    if noted is not None and plan.outcome is not Outcome.KEPT:
        noted.append((plan, None))
