"""The matching problem: to find a step activation with the Gaussian moments of another activation.

A step activation is a piecewise constant function with a few values. `GaussianMoments` defines the
moments.
"""

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
"""Weights of m1, m2, m3 and tau_out^2 (see `GaussianMoments`) in a search for a step activation; a
moment of weight 0 need not match."""
WITHOUT_TAU = np.array([1.0, 1.0, 1.0, 0.0])
WITHOUT_M3 = np.array([1.0, 1.0, 0.0, 1.0])
LINEAR = np.array([1.0, 1.0, 0.0, 0.0])
MATCHED = ("m1", "m2", "m3", "tau_out")
KEEP = "keep the activation"
NO_NUMBER = (
    "more levels do not help, no number does: match tau_out in the layers below too, so that "
    "step_tau = tau, or pass "
    "levels=1, for which tau_out does not have to match"
)
FLAT = 1e-12
"""An activation counts as constant if the standard deviation of its outputs is less than this
fraction of their root mean square."""
LEAST = 1e-100


class NoMatchError(ValueError):
    """No step activation matches a given activation; see `MatchedStep`.

    To match means to have the same `GaussianMoments`. `residual` is the distance between the wanted
    moments and those of the nearest step activation.
    """

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


@dataclass(frozen=True)
class MatchedStep(StepActivation):
    """A step activation (a function with a few values) that replaces another activation.

    The scale of an activation is the standard deviation of its argument. For normal arguments of
    the step's scale, the outputs of the step have the mean 0.

    Args:
        thresholds: Points where the value changes, ascending.
        heights: Values below, between and above the thresholds; the mean is subtracted already.
        moments: `GaussianMoments` of the step, at its scale in the network that has the step.
        target: Moments of the replaced activation, at its scale in the original network.
        residual: Distance between the moments of the step and of the target. It is the Euclidean
            norm of the differences in m1 tau / T, m2 tau^2 / T, m3 tau^2 / T^2 and tau_out^2 / T^2,
            without those that need not match. tau is the scale of the step, and T is the tau_out of
            the target.
    """

    moments: GaussianMoments
    target: GaussianMoments
    residual: float

    @property
    def identity_shift(self) -> float:
        """What a layer's kernel (the Gram matrix of its outputs) gains on the diagonal.

        A step activation, which takes few values, replaces another activation. The result is one
        number: the variance of the step's outputs, minus that of the replaced activation's. It acts
        like the penalty of ridge regression.
        """
        return self.moments.variance_slopes[0] - self.target.variance_slopes[0]


@dataclass(frozen=True)
class MatchingProblem:
    """The Gaussian moments of an activation that a step activation has to match.

    `GaussianMoments` defines these moments, such as m1, m2 and m3. A step activation is a function
    with a few values. The scale of an activation is the standard deviation of its argument.

    Args:
        activation: The activation.
        target: Moments of the activation, at its scale in the original network.
        step_tau: Scale of the step's argument.
        goal: The moments that the step has to match, in other units: (m1, m2, m3, variance) for
            a step whose argument and output have variance 1.
    """

    activation: Activation
    target: GaussianMoments
    step_tau: float
    goal: Array

    @property
    def is_odd(self) -> bool:
        """Whether m2, the mean second derivative of the activation, is 0 up to rounding.

        Then the kernel of this layer, the Gram matrix of the outputs, does not depend on the moment
        m3 of `GaussianMoments`.
        """
        return abs(self.goal[1]) < 1e-9

    @property
    def needed_share(self) -> float:
        """The share of a step activation's variance that must be linear and quadratic.

        `quadratic` gives the linear plus the quadratic part. A step activation needs this share
        only if the variance of its outputs has to match that of the replaced activation.
        """
        return float(self.goal[0] ** 2 + self.goal[1] ** 2 / 2)

    def quadratic(self, xi: Array) -> Array:
        """The linear plus the quadratic part of a step activation, at standard normal `xi`.

        `goal` holds the moments that the step activation must have (see `MatchingProblem`). They
        fix these two parts. Their sum is the polynomial of degree 2 that is nearest to the step
        activation in mean square.
        """
        return self.goal[0] * xi + self.goal[1] * (xi**2 - 1) / 2

    def search(self, starts: Iterable[Pattern], chosen: Array) -> tuple[Pattern, float]:
        """The first step activation whose moments meet the goal; the nearest one if none does.

        The search begins at each of `starts` in turn. `chosen` tells how much each of the four
        moments of `goal` counts; 0 means that it need not match. The second result is the residual,
        the distance between the moments of the step activation and the goal.
        """
        found = []
        for start in starts:
            found.append(solve(start, self.goal, chosen))
            if found[-1][1] < TOLERANCE:
                break
        return min(found, key=lambda pair: pair[1])

    def accept(
        self, found: tuple[Pattern, float], chosen: Array, *, levels: int, remedy: str
    ) -> MatchedStep:
        """The step activation that a search found, if it matches the moments of the activation.

        Args:
            found: A step activation and its residual, from `search`.
            chosen: How much each of the four moments of `goal` counted in the search; 0 if it did
                not count.
            levels: Number of distinct values minus one.
            remedy: The advice in the message of the error.

        Raises:
            NoMatchError: If the step activation does not match the moments.
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
            f"no step of levels={levels} that matches the {', '.join(names[:-1])} and {names[-1]} "
            f"of {self.activation!r} at tau={self.target.tau:.6g} was found: the least residual is "
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
    """The `MatchingProblem` of an activation: the moments that a step activation has to match.

    tau and step_tau are the scales: the standard deviations of the arguments of the activation and
    of the step.

    Raises:
        ValueError: If a scale is not positive, the activation is constant, or m1 and m2 (see
            `GaussianMoments`) both vanish.
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
