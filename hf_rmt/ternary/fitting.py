"""Makes a head ternary: first its hidden layers, then the last layer, fitted to its old outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hf_rmt.compression.apply import decide_shared
from hf_rmt.compression.calibration.batches import Batch
from hf_rmt.compression.calibration.calibrated import measured
from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.decision import Decision
from hf_rmt.nn.counterparts import weight_matrix
from hf_rmt.plan import LayerPlan
from hf_rmt.settings import CompressionSettings
from hf_rmt.spectra import SpectrumFit
from hf_rmt.ternary.forward_trace import UNREACHED, Position
from hf_rmt.ternary.least_squares import Regression
from hf_rmt.ternary.regression import regression
from hf_rmt.ternary.steps import measured_arguments, stepped
from hf_rmt.ternary.weight import check_varied, made, refit_weight, ternarize_weight

logger = logging.getLogger(__name__)

FEW = 64
"""With fewer samples the user is warned, and steps are not compared with activations."""
REFITTED = "refitted to its outputs in the dense model"
NO_READER = "after it is kept: no layer after the activation can be refitted"
Decided = dict[str, tuple[LayerPlan, SpectrumFit | None]]
"""The decisions: for each name of a layer its plan, and its fitted spectrum if it has one."""


@dataclass(frozen=True)
class Head:
    """The layers of a head, with what calibration says about them.

    Attributes:
        model: The model.
        names: Names of linear layers, as `select_layers` gives them.
        settings: What the user asked for.
        found: The positions of the layers in the forward pass.
        last: Name of the layer that is fitted to its old outputs; None if there is none.
        batches: Keyword arguments of the model; on several processes each may have its own.
        outputs: The last layer's outputs in the dense model, batch by batch and call by call.
    """

    model: nn.Module
    names: Sequence[str]
    settings: CompressionSettings
    found: Mapping[str, Position]
    last: str | None
    batches: Sequence[Batch]
    outputs: Sequence[Sequence[Tensor]]

    @property
    def hidden(self) -> list[str]:
        """The names of the layers before the last."""
        return [name for name in self.names if name != self.last]

    def is_free(self, name: str) -> bool:
        """Whether outputs of a layer may be scaled and shifted, as the refit then corrects this."""
        if self.last is None or self.found[name].reader != self.last:
            return False
        return self.model.get_submodule(self.last).bias is not None

    def hidden_done(self, activation: str, *, dry_run: bool = False) -> Decided:
        """Make the hidden layers ternary, one after the other, with or without steps.

        Args:
            activation: `matched` for steps, `keep` for the activations as they are.
            dry_run: Only plan; no layer is replaced.
        """
        decisions: Decided = {}
        groups = measured(self.model, self.hidden, self.batches, min_size=1) if self.hidden else ()
        for group, excited in groups:

            def decide(
                name: str,
                weight: Tensor,
                settings: CompressionSettings,
                excited: Mapping[str, LayerMoments] = excited,
            ) -> Decision:
                return self._hidden(name, weight, excited.get(name), activation)

            done = decide_shared(self.model, group, self.settings, dry_run=dry_run, decide=decide)
            decisions |= by_name(done)
        return decisions

    def _hidden(
        self, name: str, weight: Tensor, seen: LayerMoments | None, activation: str
    ) -> Decision:
        settings, random = self.settings, self.settings.weights == "random"
        if seen is None:
            return ternarize_weight(name, weight, settings, random=random).noted(UNREACHED)
        check_varied(name, seen.inputs)
        result = ternarize_weight(name, weight, settings, random=random, moment=seen.inputs)
        layer, place = made(result), self.found[name]
        if layer is None:
            return result
        result = replace(result, mean_input=seen.mean)
        if activation == "keep" or place.kept:
            return result.noted(place.kept if activation == "matched" else "")
        arguments = measured_arguments(self.model, name, weight, layer, seen)
        return stepped(self.model, name, place, result, arguments, free=self.is_free(name))

    def seen(self) -> tuple[Regression, Regression]:
        """Sums over the last layer's present inputs and old outputs, as `regression` gives them."""
        assert self.last is not None
        return regression(self.model, self.last, self.batches, self.outputs)

    def refit(self, weight: Tensor, seen: Regression, hidden: Decided) -> Decision:
        """The decision on the last layer, after the decisions on the others.

        Args:
            weight: Weight of the last layer, shape (out, in).
            seen: The sums over samples to which this layer is fitted.
            hidden: The decisions on the layers before it.
        """
        assert self.last is not None
        bias: Any = self.model.get_submodule(self.last).bias
        gain = self._gain(hidden)
        return refit_weight(self.last, weight, bias, self.settings, seen, gain=gain)

    def last_done(self, seen: Regression, hidden: Decided, *, dry_run: bool = False) -> Decided:
        """Make the last layer ternary, and fit it to its outputs in the dense model."""
        assert self.last is not None
        if seen.count < FEW:
            logger.warning(
                "%s is fitted to %d samples; pass a few hundred, because fewer than %d are too few "
                "for a good fit",
                self.last,
                seen.count,
                FEW,
            )

        def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
            result = self.refit(weight, seen, hidden)
            result = result if result.plan.reason else result.noted(REFITTED)
            function = self.found[name].function
            return result if function is None else result.noted(f"{function} {NO_READER}")

        told: dict[str, Any] = {"dry_run": dry_run, "decide": decide}
        return by_name(decide_shared(self.model, [self.last], self.settings, **told))

    def error(self, fitted: Regression, held: Regression, hidden: Decided) -> float:
        """The error of the last layer on held-out samples, if it is fitted to the other samples.

        Args:
            fitted: Sums over the samples to fit to.
            held: Sums over the samples that are held out of the fit.
            hidden: The decisions on the layers before it, which are already in the model.

        Returns:
            The error as in `Regression.error`.
        """
        assert self.last is not None
        module: Any = self.model.get_submodule(self.last)
        weight, bias = weight_matrix(module), module.bias
        result = self.refit(weight, fitted, hidden)
        layer = made(result)
        if result.bias_shift is not None:
            bias = bias.detach() + result.bias_shift
        return held.error(weight if layer is None else layer.dense(), bias)

    def _gain(self, hidden: Decided) -> float:
        """The gain, as in `Levels`, of a step that scaled the last layer's inputs; 1 if none."""
        for name, (plan, _) in hidden.items():
            if plan.step is not None and self.is_free(name):
                return float(plan.step.get("gain", 1.0))
        return 1.0


def last_of(found: Mapping[str, Position]) -> str | None:
    """The last layer that feeds no activation, or whose activation gives the model's output.

    Args:
        found: Positions of the layers in the forward pass, in the order of their calls.

    Returns:
        Its name; None if there is none.
    """
    reached = [name for name, place in found.items() if place.kept != UNREACHED]
    ends = [name for name in reached if found[name].kept]
    if reached and found[reached[-1]].function and not found[reached[-1]].reader:
        ends.append(reached[-1])
    return ends[-1] if ends else None


def by_name(decisions: Iterable[tuple[LayerPlan, SpectrumFit | None]]) -> Decided:
    """Decisions under the names of their layers."""
    return {plan.name: (plan, fit) for plan, fit in decisions}
