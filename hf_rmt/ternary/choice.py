"""Decides whether step activations are better than activations, on samples left out of the fit.

A step activation takes a few values. In the limit of large widths it keeps the kernel of a network:
how similar the network finds two inputs. But it may still harm a trained head (the last layers) of
finite width. So the head is fitted with and without step activations, and both fits are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from hf_rmt.compression.apply import note_done, unnoted
from hf_rmt.kernels import NoMatchError
from hf_rmt.nn.swap import swap_module
from hf_rmt.plan import LayerPlan
from hf_rmt.ternary.fitting import FEW, Decided, Head
from hf_rmt.ternary.least_squares import Regression
from hf_rmt.ternary.steps import activation_of

UNJUDGED = "is kept: no layer after it is refitted, and without a refit no step can be judged"
TOO_FEW = f"is kept: at least {FEW} samples are needed to compare a step with it"


@dataclass(frozen=True)
class _Trial:
    """One way to make a head ternary, with or without step activations, and how good the result is.

    The head is the last layers of a model. Ternary weights are -1, 0 and 1, times a scale. A step
    activation takes a few values.

    Attributes:
        decisions: What was decided on each layer of the head except the last.
        seen: The `Regression` sums over all samples, from which the last layer can be fitted.
        error: The error of the last layer's outputs on every fourth sample, after a fit to the
            other samples; nan if there are fewer than `hf_rmt.ternary.fitting.FEW` samples.
    """

    decisions: Decided
    seen: Regression
    error: float


class _Snapshot:
    """The modules of a head and the values of their biases, to restore them after a trial.

    The head is the last layers of a model.
    """

    def __init__(self, head: Head) -> None:
        self._model = head.model
        names = [*head.hidden, *filter(None, (_module_of(head, name) for name in head.hidden))]
        self._parts: dict[str, nn.Module] = {name: head.model.get_submodule(name) for name in names}
        self._biases: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            if isinstance(bias := getattr(part, "bias", None), Tensor):
                self._biases[name] = bias.detach().clone()

    def put_back(self) -> None:
        """Put the saved modules back into the model, with the values that their biases had."""
        for name, part in self._parts.items():
            swap_module(self._model, name, part)
        for name, bias in self._biases.items():
            self._model.get_parameter(f"{name}.bias").data.copy_(bias)


def choose(head: Head, *, dry_run: bool = False) -> Decided:
    """Fit a head with and without step activations, and keep the better one of the two heads.

    The head is the last layers of a model. The better one predicts the outputs of the model before
    compression with a smaller error. A step activation takes a few values. The step activations of
    all layers are judged together, not one by one.

    Args:
        head: The head; its layers are replaced in the model.
        dry_run: Only plan. Both ways are still tried in the model; then the model is restored.

    Returns:
        The decisions on all layers, by name.
    """
    if head.last is None:
        return _reasoned(head, head.hidden_done("keep", dry_run=dry_run), UNJUDGED)
    before = _Snapshot(head)
    try:
        with unnoted():
            trial = _better(head, before)
        done = head.last_done(trial.seen, trial.decisions, dry_run=dry_run)
    except BaseException:
        before.put_back()
        raise
    if dry_run:
        before.put_back()
    else:
        for plan, _ in trial.decisions.values():
            note_done(plan)
    return trial.decisions | done


def _better(head: Head, before: _Snapshot) -> _Trial:
    """Make a head ternary with and without step activations, and return the better trial.

    The head is the last layers of a model; a step activation takes a few values. The better
    version stays in the model. `before` restores the head as it was.
    """
    kept = _tried(head, "keep")
    if all(head.found[name].kept for name in head.hidden):
        return replace(kept, decisions=_reasoned(head, kept.decisions, ""))
    if kept.seen.count < FEW:
        return replace(kept, decisions=_reasoned(head, kept.decisions, TOO_FEW))
    after = _Snapshot(head)
    before.put_back()
    try:
        steps = _tried(head, "matched")
    except NoMatchError:
        after.put_back()
        return replace(
            kept, decisions=_reasoned(head, kept.decisions, "is kept: no step was found")
        )
    words = f"error on held-out rows {steps.error:.3g} with it, {kept.error:.3g} without"
    if steps.error < kept.error:
        return replace(steps, decisions=_stepped(steps.decisions, words))
    after.put_back()
    words = (
        f"is kept: error on held-out rows {kept.error:.3g} with it, {steps.error:.3g} with a step"
    )
    return replace(kept, decisions=_reasoned(head, kept.decisions, words, steps.decisions))


def _tried(head: Head, activation: str) -> _Trial:
    decisions = head.hidden_done(activation)
    fitted, held = head.seen()
    seen = fitted + held
    error = head.error(fitted, held, decisions) if seen.count >= FEW else float("nan")
    return _Trial(decisions, seen, error)


def _reasoned(head: Head, decisions: Decided, words: str, others: Decided | None = None) -> Decided:
    """Add to the decision on each layer of a head the reason why its activation is kept.

    Args:
        head: The head, which is the last layers of a model, without step activations.
        decisions: The decisions on its hidden layers.
        words: The reason for each activation that a step activation could replace.
        others: The decisions on the same layers in a trial with step activations. If a layer got
            no step activation in that trial either, the layer's plan is taken from there, because
            that plan says why.

    Returns:
        The decisions with the reasons added.
    """
    reasoned = {}
    for name, (plan, fit) in decisions.items():
        place = head.found[name]
        if plan.compressed and place.kept:
            plan = plan if place.kept in plan.reason else _noted(plan, place.kept)
        elif plan.compressed and others and others[name][0].step is None:
            plan = others[name][0]
        elif plan.compressed:
            plan = _noted(plan, f"{activation_of(head.model, name, place)} {words}")
        reasoned[name] = plan, fit
    return reasoned


def _stepped(decisions: Decided, words: str) -> Decided:
    """Add `words` to the reason in the plan of each layer that has a step activation."""
    return {
        name: (plan if plan.step is None else _noted(plan, words), fit)
        for name, (plan, fit) in decisions.items()
    }


def _noted(plan: LayerPlan, words: str) -> LayerPlan:
    return replace(plan, reason="; ".join(filter(None, (plan.reason, words))))


def _module_of(head: Head, name: str) -> str:
    """Full name of the activation module that gets inputs only from layer `name`, or empty."""
    activation = head.found[name].activation
    return f"{name.rpartition('.')[0]}.{activation}".lstrip(".") if activation else ""
