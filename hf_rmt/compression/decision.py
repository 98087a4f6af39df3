"""The decision on one weight: keep the layer, rewrite its weight, or replace the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from hf_rmt.nn import SpikedLinear
from hf_rmt.plan import Cause, LayerPlan, Outcome
from hf_rmt.spectra import SpectrumFit

Build = Callable[[Tensor], nn.Module]
"""A function that makes a compressed layer, without a bias, from a dense weight."""


@dataclass(frozen=True)
class Decision:
    """The decision on one weight: what happens to it, and all that is needed to do that.

    Attributes:
        plan: The plan of the layer; `plan.outcome` says whether the layer is kept, rewritten or
            replaced.
        fit: The spectrum (the squared singular values), split into signal and noise; see
            `hf_rmt.spectra`. None if it was not split.
        build: Makes the layer that replaces the dense one; None if the layer is not replaced.
        rewritten: The new dense weight, shape (out, in); None unless the weight is rewritten.
        mean_input: Mean input of a layer with a bias, shape (in,). From this, a shift of the bias
            is computed that keeps the mean output. None if no mean input was measured.
        bias_shift: The shift of the bias, shape (out,); None if no shift was computed.
    """

    plan: LayerPlan
    fit: SpectrumFit | None = None
    build: Build | None = None
    rewritten: Tensor | None = None
    mean_input: Tensor | None = None
    bias_shift: Tensor | None = None

    def layer(self, weight: Tensor) -> Any:
        """The compressed layer, made anew at each call and without a bias.

        Args:
            weight: The dense weight of the layer, shape (out, in).

        Raises:
            ValueError: If the layer is not replaced, or its entries cannot be stored.
        """
        if self.build is None:
            raise ValueError(f"{self.plan.name} stays dense: {self.plan.reason}")
        try:
            return self.build(weight)
        except ValueError as error:
            raise ValueError(f"layer {self.plan.name!r}: {error}") from error

    def dense(self, weight: Tensor) -> Tensor | None:
        """The new weight as a dense matrix, shape (out, in); None for a layer that is kept."""
        return self.layer(weight).dense().detach() if self.build else self.rewritten

    def noted(self, note: str) -> Self:
        """A copy of the decision, with a note added to the reason in its plan."""
        reason = "; ".join(filter(None, (self.plan.reason, note)))
        return replace(self, plan=replace(self.plan, reason=reason))


@dataclass(frozen=True)
class SpikedBuild:
    """Makes a `SpikedLinear`, a layer that stores signal as two low-rank factors, and noise apart.

    `hf_rmt.spectra` explains the signal and the noise of a weight.

    Attributes:
        left: Factor of shape (out, rank).
        right: Factor of shape (rank, in).
        noise: How the rest of the weight is stored, as in `LayerPlan.noise`.
        recovery: Numbers by which the singular values are multiplied, shape (rank,), to give them
            the sizes that they would have without noise. None leaves them unchanged.
    """

    left: Tensor
    right: Tensor
    noise: str
    recovery: Tensor | None = None

    def __call__(self, weight: Tensor) -> SpikedLinear:
        """Make the compressed layer from the dense weight.

        Its signal is the product of the factors, and its noise is the weight minus this product.
        If `recovery` is given, it then scales the signal.
        """
        layer = SpikedLinear.from_factors(self.left, self.right, weight, None, noise=self.noise)
        if self.recovery is not None:
            layer.scale_signal(self.recovery)
        return layer

    def product(self) -> Tensor:
        """The signal (the product of the factors) as a dense matrix, shape (out, in)."""
        left = self.left if self.recovery is None else self.left * self.recovery
        return left @ self.right

    def recovered(self) -> Tensor | None:
        """The part of the signal that `recovery` takes away, as a matrix of shape (out, in).

        `recovery` makes the singular values of the signal smaller. If it is None, so is the result.
        """
        return None if self.recovery is None else self.left * (1 - self.recovery) @ self.right


def keep(
    name: str,
    weight: Tensor,
    cause: Cause,
    reason: str,
    *,
    fit: SpectrumFit | None = None,
) -> Decision:
    """The decision that a layer stays as it is.

    Args:
        name: Name of the module in `model.named_modules()`.
        weight: The weight of the module, shape (out, in).
        cause: The kind of reason, for use in code.
        reason: The reason in words.
        fit: The spectrum (the squared singular values) split into signal and noise, if there is
            one.
    """
    phase = "" if fit is None else str(fit.phase)
    return Decision(dense_plan(name, weight, cause, reason, phase=phase), fit)


def rewritten_plan(name: str, weight: Tensor, reason: str) -> LayerPlan:
    """The `LayerPlan` of a layer that stays dense (not compressed) and gets another weight."""
    return dense_plan(name, weight, Cause.NONE, reason, outcome=Outcome.REWRITTEN)


def dense_plan(
    name: str,
    weight: Tensor,
    cause: Cause,
    reason: str,
    *,
    phase: str = "",
    outcome: Outcome = Outcome.KEPT,
) -> LayerPlan:
    """The `LayerPlan` of a layer that stays dense (not compressed), with the reason for it."""
    bits = weight.numel() * weight.element_size() * 8
    return LayerPlan(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        outcome=outcome,
        phase=phase,
        bits=bits,
        dense_bits=bits,
        reason=reason,
        cause=cause,
    )
