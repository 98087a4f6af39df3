"""Makes a head (the last layers of a model) ternary: first the hidden layers, then the last layer.

Ternary weights are -1, 0 and 1, times a scale. The last layer is fitted to the outputs that it has
in the dense model, the model before compression.
"""

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
"""With fewer calibration samples than this, the user is warned, and step activations (with a few
values) are not tried in place of activations."""
REFITTED = "refitted to its outputs in the dense model"
NO_READER = "after this layer is kept: no layer that reads the activation can be refitted"
Decided = dict[str, tuple[LayerPlan, SpectrumFit | None]]
"""What was decided on each layer, by its name: the plan of the layer, and the fit to its singular
values or None."""


@dataclass(frozen=True)
class Head:
    """The layers of a head (last layers of a model), and all that is needed to make them ternary.

    Attributes:
        model: The model.
        names: Names of the linear layers, as `select_layers` returns them.
        settings: The user's settings.
        found: The `Position`s of the layers in the forward pass, by name.
        last: Name of the layer that is fitted to `outputs`; None if there is none.
        batches: Calibration batches, each with keyword arguments of the model. Every process may
            have its own batches.
        outputs: The last layer's outputs in the model before compression: for each batch, one
            tensor per call.
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
        """The names of all layers of the head except the last."""
        return [name for name in self.names if name != self.last]

    def is_free(self, name: str) -> bool:
        """Whether the activation after a layer may be scaled and shifted.

        This is allowed if the last layer reads the activation and has a bias. The refit of the last
        layer then undoes the scale and the shift.
        """
        if self.last is None or self.found[name].reader != self.last:
            return False
        return self.model.get_submodule(self.last).bias is not None

    def hidden_done(self, activation: str, *, dry_run: bool = False) -> Decided:
        """Make the hidden layers ternary, one after the other, with or without step activations.

        Hidden layers are all layers of the head (the last layers of a model) except the last.

        Args:
            activation: `matched` replaces activations by step activations, which take a few values;
                `keep` keeps the activations.
            dry_run: Only plan; no layer is replaced.

        Returns:
            The decisions on these layers, by name.
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
        """Two `Regression`s (sums over samples): one to fit the last layer, one to test it.

        The inputs are those in the model as it is now, with hidden layers that may be ternary
        already. The outputs are those before compression.
        """
        assert self.last is not None
        return regression(self.model, self.last, self.batches, self.outputs)

    def refit(self, weight: Tensor, seen: Regression, hidden: Decided) -> Decision:
        """Fit the last layer to the outputs that it had before compression, and make it ternary.

        Args:
            weight: Weight of the last layer, shape (out, in).
            seen: `Regression` sums over the samples to which the layer is fitted.
            hidden: The decisions on the hidden layers.

        Returns:
            The decision on the last layer.
        """
        assert self.last is not None
        bias: Any = self.model.get_submodule(self.last).bias
        gain = self._gain(hidden)
        return refit_weight(self.last, weight, bias, self.settings, seen, gain=gain)

    def last_done(self, seen: Regression, hidden: Decided, *, dry_run: bool = False) -> Decided:
        """Replace the last layer by a ternary one, fitted to its outputs before compression.

        `seen` holds the sums over samples for the fit, `hidden` the decisions on the other layers.
        The result is the decision on the last layer, by name. With `dry_run`, nothing is replaced.
        """
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
            fitted: `Regression` sums over the samples to fit to.
            held: `Regression` sums over the samples that are held out of the fit.
            hidden: The decisions on the hidden layers, which are already in the model.

        Returns:
            The squared error divided by the variance of the outputs, as in `Regression.error`.
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
        """The factor by which the inputs of the last layer were scaled; 1 if they were not.

        A step activation (a function with a few values) may scale them: see `Levels.gain`.
        `hidden` holds the decisions on the other layers.
        """
        for name, (plan, _) in hidden.items():
            if plan.step is not None and self.is_free(name):
                return float(plan.step.get("gain", 1.0))
        return 1.0


def last_of(found: Mapping[str, Position]) -> str | None:
    """Name of the layer to refit: the last layer without an activation that can be replaced.

    `Position.kept` says why it has none. The layer that is called last also counts if it feeds an
    activation function whose output no other linear layer reads.

    Args:
        found: Positions of the layers in the forward pass, in the order of their calls.

    Returns:
        The name; None if there is no such layer.
    """
    reached = [name for name, place in found.items() if place.kept != UNREACHED]
    ends = [name for name in reached if found[name].kept]
    if reached and found[reached[-1]].function and not found[reached[-1]].reader:
        ends.append(reached[-1])
    return ends[-1] if ends else None


def by_name(decisions: Iterable[tuple[LayerPlan, SpectrumFit | None]]) -> Decided:
    """The decisions (plan and fitted spectrum) as a dictionary, by the names of the layers."""
    return {plan.name: (plan, fit) for plan, fit in decisions}
