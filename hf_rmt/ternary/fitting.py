"""A head on calibration: its hidden layers made ternary, its last one fitted to what it gave."""

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
"""Samples below which the user is warned of the fit, and nothing is judged by it."""
REFITTED = "refitted to the outputs it had"
NO_READER = "after it is kept: no layer reads it that could be refitted"
Decided = dict[str, tuple[LayerPlan, SpectrumFit | None]]
"""What was decided, layer by layer under its name."""


@dataclass(frozen=True)
class Head:
    """Layers of a model with what is known of them from calibration.

    Attributes:
        model: The model.
        names: Linears, as `select_layers` gives them.
        settings: What the user asked for.
        found: Where the layers stand.
        last: Name of the one that is fitted to what it gave; None for none.
        batches: Keyword arguments of the model; on several processes each may have its own.
        outputs: What the last layer gave in the dense model, batch by batch and call by call.
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
        """The layers before the last."""
        return [name for name in self.names if name != self.last]

    def is_free(self, name: str) -> bool:
        """Whether what follows a layer may be scaled and shifted: the refit makes up for it."""
        if self.last is None or self.found[name].reader != self.last:
            return False
        return self.model.get_submodule(self.last).bias is not None

    def hidden_done(self, activation: str, *, dry_run: bool = False) -> Decided:
        """Make the hidden layers ternary, in turn, with or without steps.

        Args:
            activation: `matched` or `keep`.
            dry_run: Only plan.
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
        """What the last layer is given now against what it gave: for the fit, and held out."""
        assert self.last is not None
        return regression(self.model, self.last, self.batches, self.outputs)

    def refit(self, weight: Tensor, seen: Regression, hidden: Decided) -> Decision:
        """What becomes of the last layer, after what has become of the others.

        Args:
            weight: Of the last layer, shape (out, in).
            seen: What it is fitted to.
            hidden: What was decided on the layers before it.
        """
        assert self.last is not None
        bias: Any = self.model.get_submodule(self.last).bias
        gain = self._gain(hidden)
        return refit_weight(self.last, weight, bias, self.settings, seen, gain=gain)

    def last_done(self, seen: Regression, hidden: Decided, *, dry_run: bool = False) -> Decided:
        """Make the last layer ternary, fitted to what it gave."""
        assert self.last is not None
        if seen.count < FEW:
            logger.warning("%s is fitted to %d samples; pass a few hundred", self.last, seen.count)

        def decide(name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
            result = self.refit(weight, seen, hidden)
            result = result if result.plan.reason else result.noted(REFITTED)
            function = self.found[name].function
            return result if function is None else result.noted(f"{function} {NO_READER}")

        told: dict[str, Any] = {"dry_run": dry_run, "decide": decide}
        return by_name(decide_shared(self.model, [self.last], self.settings, **told))

    def error(self, fitted: Regression, held: Regression, hidden: Decided) -> float:
        """Error of a last layer that is fitted to some samples, on those that were held out.

        Args:
            fitted: The former.
            held: The latter.
            hidden: What was decided on the layers before it, and carried out.

        Returns:
            As of `Regression.error`.
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
        """What the inputs of the last layer were multiplied with, to be values of a function."""
        for name, (plan, _) in hidden.items():
            if plan.step is not None and self.is_free(name):
                return float(plan.step.get("gain", 1.0))
        return 1.0


def last_of(found: Mapping[str, Position]) -> str | None:
    """The last layer that feeds no activation, or whose activation gives the model's output.

    Args:
        found: Where layers stand, in the order of their calls.

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
