"""The problem to match the moments of an activation by a step, its solutions and its errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hf_rmt.kernels.activations import Activation, Array
from hf_rmt.kernels.gaussian_moments import GaussianMoments, check_scale, gaussian_moments
from hf_rmt.kernels.quantizer import quantized
from hf_rmt.kernels.solver import Pattern, solve
from hf_rmt.kernels.steps import StepActivation, cell_masses

TOLERANCE = 1e-10
MAX_LEVELS = 63
ALL = np.array([1.0, 1.0, 1.0, 1.0])
"""Weights of m1, m2, m3 and tau_out^2 in a search; a moment of weight 0 need not match."""
WITHOUT_TAU = np.array([1.0, 1.0, 1.0, 0.0])
WITHOUT_M3 = np.array([1.0, 1.0, 0.0, 1.0])
LINEAR = np.array([1.0, 1.0, 0.0, 0.0])
MATCHED = ("m1", "m2", "m3", "tau_out")
KEEP = "keep the activation"
NO_NUMBER = (
    "no number does: match tau_out in the layers below too, so that step_tau = tau, or pass "
    "levels=1, for which tau_out does not have to match"
)
FLAT = 1e-12
"""An activation that varies by less than this part of its size counts as constant."""
LEAST = 1e-100


class NoMatchError(ValueError):
    """No step with the wanted moments was found; `residual` is the least distance from them."""

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


@dataclass(frozen=True)
class MatchedStep(StepActivation):
    """A step activation with mean 0 at its own scale that replaces another activation.

    Args:
        thresholds: Points where the value changes, ascending.
        heights: Values between the thresholds, after the mean is subtracted.
        moments: Moments of the step, at the scale of its own network.
        target: Moments of the replaced activation, at the scale of the network of that activation.
        residual: Distance between the moments of step and target: Euclidean norm of the differences
            in those of m1 tau / T, m2 tau^2 / T, m3 tau^2 / T^2 and tau_out^2 / T^2 that had to
            match. tau is the scale of the step, and T is the tau_out of the target.
    """

    moments: GaussianMoments
    target: GaussianMoments
    residual: float

    @property
    def identity_shift(self) -> float:
        """The multiple of I that the kernel gains (a ridge): tau_out^2 of step minus target."""
        return self.moments.variance_slopes[0] - self.target.variance_slopes[0]


@dataclass(frozen=True)
class MatchingProblem:
    """The moments to match, in units of the step's scale and of the target's tau_out.

    Args:
        activation: The activation that a step has to match.
        target: Moments of the activation in its own network.
        step_tau: Scale of the step's argument.
        goal: (m1, m2, m3, 1), the goal for a step whose argument and output have variance 1.
    """

    activation: Activation
    target: GaussianMoments
    step_tau: float
    goal: Array

    @property
    def is_odd(self) -> bool:
        """Whether m2 = 0; then the kernel of this layer does not depend on m3."""
        return abs(self.goal[1]) < 1e-9

    @property
    def needed_share(self) -> float:
        """Fraction of the step's variance that must be linear and quadratic if tau_out matches."""
        return float(self.goal[0] ** 2 + self.goal[1] ** 2 / 2)

    def quadratic(self, xi: Array) -> Array:
        """The linear and quadratic part of the goal, at arguments xi of variance 1."""
        return self.goal[0] * xi + self.goal[1] * (xi**2 - 1) / 2

    def search(self, starts: Iterable[Pattern], chosen: Array) -> tuple[Pattern, float]:
        """The first step that meets the goal exactly, else the nearest one, and its residual."""
        found = []
        for start in starts:
            found.append(solve(start, self.goal, chosen))
            if found[-1][1] < TOLERANCE:
                break
        return min(found, key=lambda pair: pair[1])

    def accept(
        self, found: tuple[Pattern, float], chosen: Array, *, levels: int, remedy: str
    ) -> MatchedStep:
        """The matched step, if a search found an exact one.

        Args:
            found: A step and its residual, from `search`.
            chosen: The weights of m1, m2, m3 and tau_out^2 in the search.
            levels: Number of distinct values minus one.
            remedy: What the message of the error advises.

        Raises:
            NoMatchError: If the step is not exact.
        """
        pattern, residual = found
        if residual > TOLERANCE:
            raise NoMatchError(self._failure(residual, chosen, levels, remedy), residual)
        centred = pattern.heights - cell_masses(pattern.points) @ pattern.heights
        step = StepActivation(
            tuple((self.step_tau * pattern.points).tolist()),
            tuple((self.target.tau_out * centred).tolist()),
        )
        moments = step.moments_at(self.step_tau)
        return MatchedStep(step.thresholds, step.heights, moments, self.target, residual)

    def _failure(self, residual: float, chosen: Array, levels: int, remedy: str) -> str:
        names = [name for name, weight in zip(MATCHED, chosen, strict=True) if weight]
        text = (
            f"no step of levels={levels} with the {', '.join(names[:-1])} and {names[-1]} of "
            f"{self.activation!r} at tau={self.target.tau:.6g} was found: the least residual is "
            f"{residual:.2g}"
        )
        if self.needed_share >= 1:
            remedy = KEEP if not chosen[3] else NO_NUMBER
        reach = quantized(self.quadratic, levels).share if chosen[3] else np.inf
        if self.needed_share > reach:
            text += (
                f". To meet tau_out, {self.needed_share:.3f} of a step's variance must be linear "
                f"and quadratic, and levels={levels} reaches at most {reach:.3f}"
            )
        return f"{text}; {remedy}"


def matching_problem(activation: Activation, tau: float, step_tau: float) -> MatchingProblem:
    """The moments to match, after a check that there is something to match.

    Raises:
        ValueError: If a scale is not positive, the activation is constant, or m1 and m2 both
            vanish.
    """
    check_scale(step_tau)
    target = gaussian_moments(activation, tau=tau)
    if target.tau_out <= max(FLAT * target.second_moment**0.5, LEAST):
        raise ValueError(
            f"{activation!r} is constant at tau={tau}: its values differ by {target.tau_out:.2g} "
            "around their mean, so that there is nothing to match; pass an activation that varies"
        )
    first, second = step_tau / target.tau_out, step_tau**2 / target.tau_out
    third = (step_tau / target.tau_out) ** 2
    goal = np.array([target.m1 * first, target.m2 * second, target.m3 * third, 1.0])
    if np.abs(goal[:2]).max() < 1e-9:
        raise ValueError(
            f"{activation!r} has m1 = m2 = 0 at tau={tau}, so that its kernel is a multiple of the "
            "identity, and there is nothing to match; pass another activation or another tau"
        )
    return MatchingProblem(activation, target, step_tau, goal)
