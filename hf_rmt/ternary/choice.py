"""Decides, by rows that the fit did not see, whether steps are better than activations.

A step carries the kernel of a wide random network. A trained head of finite width may lose too much
by a step. So both heads are fitted and compared.
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

UNJUDGED = "is kept: no layer after it is refitted, so a step cannot be compared with it"
TOO_FEW = f"is kept: fewer than {FEW} samples are too few to compare a step with it"


@dataclass(frozen=True)
class _Trial:
    """A head whose hidden layers are ternary, with what its last layer sees.

    Attributes:
        decisions: On the hidden layers.
        seen: On all samples.
        error: On those held out from a fit; nan where they are too few.
    """

    decisions: Decided
    seen: Regression
    error: float


class _Snapshot:
    """The current modules of a model, to restore them later."""

    def __init__(self, head: Head) -> None:
        self._model = head.model
        names = [*head.hidden, *filter(None, (_module_of(head, name) for name in head.hidden))]
        self._parts: dict[str, nn.Module] = {name: head.model.get_submodule(name) for name in names}
        self._biases: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            if isinstance(bias := getattr(part, "bias", None), Tensor):
                self._biases[name] = bias.detach().clone()

    def put_back(self) -> None:
        """Undo what has been done to the modules since."""
        for name, part in self._parts.items():
            swap_module(self._model, name, part)
        for name, bias in self._biases.items():
            self._model.get_parameter(f"{name}.bias").data.copy_(bias)


def choose(head: Head, *, dry_run: bool = False) -> Decided:
    """Fit a head with and without steps, and keep what predicts its outputs better.

    The steps of all layers are judged together.

    Args:
        head: The head.
        dry_run: Only plan. Both heads are still tried on the model, and the model is restored.

    Returns:
        What was decided on all layers.
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
    """Try both heads, and leave the better one on the model."""
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
    """Decisions of a head without steps, each with the reason why its activation is kept.

    Args:
        head: The head.
        decisions: On its hidden layers.
        words: Why a step that could be had is not taken.
        others: What was decided with steps; for a layer that got no step there, that reason is
            used.
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
    """Decisions; the reasons of layers with a step get the words of the comparison."""
    return {
        name: (plan if plan.step is None else _noted(plan, words), fit)
        for name, (plan, fit) in decisions.items()
    }


def _noted(plan: LayerPlan, words: str) -> LayerPlan:
    return replace(plan, reason="; ".join(filter(None, (plan.reason, words))))


def _module_of(head: Head, name: str) -> str:
    """Runtime name of the activation module whose only input is this layer's output, or empty."""
    activation = head.found[name].activation
    return f"{name.rpartition('.')[0]}.{activation}".lstrip(".") if activation else ""
