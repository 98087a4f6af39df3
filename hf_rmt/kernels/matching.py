"""Finds step activations with the Gaussian moments of another activation, so that kernels agree.

A step activation is a piecewise constant function with a few values. `GaussianMoments` defines the
moments. A kernel is a matrix that compares the inputs of a network.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from hf_rmt.kernels.activations import Activation, Array
from hf_rmt.kernels.families import (
    one_level_patterns,
    published_patterns,
    quantized_patterns,
    sign_pattern,
    ternary_patterns,
)
from hf_rmt.kernels.problem import (
    ALL,
    LINEAR,
    MAX_LEVELS,
    TOLERANCE,
    WITHOUT_M3,
    WITHOUT_TAU,
    MatchedStep,
    MatchingProblem,
    matching_problem,
)
from hf_rmt.kernels.quantizer import quantized

COARSE = 16
"""Levels are the number of values of a step activation, minus one. Below this number of levels, the
search for the fewest levels tries every number; above it, the search skips some."""
NEAR = 1e-3
"""Weight of tau_out in a search that has to match tau_out only roughly; m1 and m2 have weight 1.
For these moments, see `GaussianMoments`."""
FREE_TAU = "levels=1, for which tau_out does not have to match"
FEWEST = f"pass levels=None for the smallest number of levels that matches, up to {MAX_LEVELS}"


def match_step_activation(
    activation: Activation,
    *,
    tau: float,
    levels: int | None = 1,
    step_tau: float | None = None,
    published: bool = False,
) -> MatchedStep:
    """Find a step activation with the moments m1, m2 and m3 of another activation.

    A step is a function that is constant between its thresholds. The moments are those of
    `GaussianMoments`. A step with levels=1 is b 1{x < s1 or x > s2} - mean, where b is the height,
    and 1{...} is 1 if the condition holds, and otherwise 0. If the activation has m2 = 0, as tanh
    has, the step is b 1{x > 0} - mean, because then the kernel of the layer (the Gram matrix of the
    outputs) does not depend on m3. Steps with more levels also have the tau_out (standard
    deviation of the outputs) of the activation, and then the kernels agree. With levels=1 the
    kernels differ by a multiple of the identity, which acts like a ridge penalty.

    Args:
        activation: A name in `ACTIVATIONS`, a function on arrays, or a `StepActivation`.
        tau: Scale (standard deviation) of the activation's argument in the network, > 0.
        levels: Number of distinct values of the step, minus one; None takes the smallest number
            that meets tau_out exactly.
        step_tau: Scale of the step's argument in the network that has the step; None for `tau`.
        published: Whether to use the step that the published code has in the last layer: b 1{x < r1
            or r2 < x <= r3 or x > r4} - mean with r4 = r3 + r2 - r1. It needs levels=2, although
            it has two values only. A match exists only if the best fit of the activation by a
            polynomial of degree 2 has at most 0.66 of its variance.

    Returns:
        The step, with its moments and its residual (see `MatchedStep`).

    Raises:
        NoMatchError: If no step with these moments is found.
        TypeError: If the activation does not accept arrays, such as an activation of torch, or
            `levels` is no whole number.
        ValueError: If an argument lies outside its range.

    Source:
        Gu et al., NeurIPS 2022, algorithm 1; the match of tau_out was derived for this package.

    Examples:
        >>> step = match_step_activation("tanh", tau=1.0)
        >>> step.thresholds, step.residual < 1e-8
        ((0.0,), True)
        >>> match_step_activation("relu", tau=1.0, levels=None).levels
        7
    """
    _check_takes_arrays(activation)
    _check_levels(levels, published=published)
    problem = matching_problem(activation, tau, tau if step_tau is None else step_tau)
    if levels is None:
        return _fewest(problem)
    chosen, remedy = _chosen(problem), f"{FEWEST}, or {FREE_TAU}"
    if published:
        patterns, chosen = published_patterns(problem), WITHOUT_M3
        remedy = f"pass published=False, and {remedy.removeprefix('pass ')}"
    elif levels > 1:
        patterns = quantized_patterns(problem, levels)
    else:
        patterns, chosen = one_level_patterns(problem), WITHOUT_TAU
        remedy = "pass levels=None for a step that meets tau_out too, or keep the activation"
        if problem.is_odd:
            patterns, chosen = iter([sign_pattern(problem)]), LINEAR
    found = problem.search(patterns, chosen)
    return problem.accept(found, chosen, levels=levels, remedy=remedy)


def match_network(
    activations: Sequence[Activation], *, tau: float, levels: int | None = 1
) -> tuple[MatchedStep, ...]:
    """Find a step activation for the activation of each layer of a network.

    A step activation is a function with a few values. The scale of a step is the standard deviation
    of its arguments; it follows from the steps of the layers before. Kernels are matrices that
    compare inputs. With levels=1, the kernels of the given network and of the network with the
    steps agree up to a multiple of the identity. With levels=None they agree without this multiple.
    But then every layer needs more levels. The reason is that after a step with levels=1 for relu,
    gelu, silu or tanh, no step has the tau_out (standard deviation of the outputs) of the next
    activation.

    A step for an activation with m2 = 0 does not match m3 (see `GaussianMoments`). If a later
    activation has m2 != 0, one part of the kernel then differs: the part that depends on the norms
    of the inputs (a2 in `kernel_coefficients`).

    Args:
        activations: One activation for each hidden layer.
        tau: tau_0, the scale of the inputs, the same for both networks.
        levels: As for `match_step_activation`.

    Returns:
        One step for each layer.

    Raises:
        NoMatchError: If no match is found for an activation.
    """
    steps: list[MatchedStep] = []
    step_tau = tau
    for activation in activations:
        step = match_step_activation(activation, tau=tau, levels=levels, step_tau=step_tau)
        steps.append(step)
        tau, step_tau = step.target.tau_out, step.moments.tau_out
    return tuple(steps)


def match_ternary_activation(activation: Activation, *, tau: float) -> MatchedStep:
    """Find a step activation of three values with the d1, d2 and, if possible, d0 of an activation.

    The step is b (1{x > s2} - 1{x <= s1}) - mean, where b is the height, and 1{...} is 1 if the
    condition holds, otherwise 0. The moments d0, d1 and d2 are those of `GaussianMoments`; d0 is
    the multiple of the identity in the layer's kernel (the Gram matrix of the outputs). A function
    of a normal variable has a best fit by a polynomial of degree 2. For a step with three values,
    this fit has at most 0.83 of the variance of the step. If the fit of the activation has more, as
    for relu, the d0 of the step is too large by `MatchedStep.identity_shift`. No other step with
    three values and with this d1 and d2 has a smaller excess.

    Args:
        activation: A name in `ACTIVATIONS`, a function on arrays, or a `StepActivation`.
        tau: Scale (standard deviation) of the activation's argument in the network, > 0.

    Returns:
        The step. Its `residual` covers d1 and d2, and also d0 if d0 matches.

    Raises:
        NoMatchError: If no step with d1 and d2 is found.

    Source:
        Tiomoko Ali, Liao & Couillet, ICLR 2022.
    """
    _check_takes_arrays(activation)
    problem = matching_problem(activation, tau, tau)
    starts = list(ternary_patterns(problem))
    found, chosen = problem.search(starts, WITHOUT_M3), WITHOUT_M3
    if found[1] >= TOLERANCE:
        near = problem.search(starts, LINEAR + NEAR * (WITHOUT_M3 - LINEAR))[0]
        found, chosen = problem.search([near], LINEAR), LINEAR
    remedy = (
        "a step with more values may have these moments: pass levels=None to match_step_activation "
        "or TernaryRandomFeatures"
    )
    return problem.accept(found, chosen, levels=2, remedy=remedy)


def _check_levels(levels: object, *, published: bool) -> None:
    whole = isinstance(levels, Integral) and not isinstance(levels, bool)
    if levels is not None and not whole:
        raise TypeError(
            f"levels must be a whole number in [1, {MAX_LEVELS}] or None, got {levels!r}; "
            "None takes the smallest number that matches"
        )
    if isinstance(levels, Integral) and not 1 <= int(levels) <= MAX_LEVELS:
        raise ValueError(
            f"levels must lie in [1, {MAX_LEVELS}] or be None, got {levels}; None takes the "
            "smallest number that matches"
        )
    if published and levels != 2:
        raise ValueError(f"published=True needs levels=2, got levels={levels}; pass levels=2")


def _check_takes_arrays(activation: Activation) -> None:
    """Refuse functions that do not accept arrays, such as functions of torch tensors."""
    if not callable(activation):
        return
    try:
        with np.errstate(all="ignore"):
            activation(np.array([0.5, 1.0]))
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"activation must be a name or a function of float64 arrays, got {activation!r}, which "
            f"does not accept them ({error}); wrap a function of torch: lambda x: "
            "activation(torch.from_numpy(x)).detach().numpy()"
        ) from error


def _fewest(problem: MatchingProblem) -> MatchedStep:
    """The step activation with the fewest values that has the moments of an activation.

    The levels are the number of values, minus one. The search starts at the smallest number of
    levels that `MatchingProblem.needed_share` allows.
    """
    candidates = range(2, MAX_LEVELS + 1)

    def share(levels: int) -> float:
        return quantized(problem.quadratic, levels).share

    chosen, remedy = _chosen(problem), f"no number up to {MAX_LEVELS} does; pass {FREE_TAU}"
    bound = bisect_left(candidates, problem.needed_share, key=share)
    levels = candidates[min(bound, len(candidates) - 1)]
    while problem.needed_share < 1:
        found = problem.search(quantized_patterns(problem, levels), chosen)
        if found[1] < TOLERANCE or levels == MAX_LEVELS:
            return problem.accept(found, chosen, levels=levels, remedy=remedy)
        levels = min(levels + 1 + levels // COARSE, MAX_LEVELS)
    found = problem.search(quantized_patterns(problem, 2), chosen)
    return problem.accept(found, chosen, levels=2, remedy=remedy)


def _chosen(problem: MatchingProblem) -> Array:
    return WITHOUT_M3 if problem.is_odd else ALL
