"""Replaces weights by ternary ones, and finds step activations that match activations.

A ternary weight holds -1, 0 and 1, times a scale. A step activation takes only a few values.

The theory compares two wide networks with independent random weights of mean 0 and equal variance.
The weights of one network are ternary. Let the activations of both have the same Gaussian moments
(see `GaussianMoments`). Then both have the same kernel, up to a multiple of the identity matrix.
The kernel says how similar a network finds two inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rmt.compression.calibration.low_rank import damped
from hf_rmt.compression.decision import Decision, dense_plan, keep
from hf_rmt.compression.execution.seeding import layer_generator
from hf_rmt.kernels import gaussian_moments, match_step_activation
from hf_rmt.nn import TernaryLinear
from hf_rmt.nn.stores.ternary_packing import pack_trits
from hf_rmt.plan import TERNARY, Cause, Outcome
from hf_rmt.settings import CompressionSettings
from hf_rmt.ternary.coordinate_descent import descend, fitted_scales
from hf_rmt.ternary.least_squares import RIDGE, Regression

RANDOM_SPARSITY = 1 / 3
"""Share of zeros in random weights if no sparsity is set: -1, 0 and 1 are equally frequent."""
UNVARIED = "not refitted: its inputs are the same in all samples"
ODD = 1e-9
"""An activation f counts as odd, f(-x) = -f(x), if |m2| tau^2 / tau_out is below this number. The
symbols are those of `GaussianMoments`; m2 is 0 if f is odd."""


@dataclass(frozen=True)
class TernaryBuild:
    """Builds the layer of a `Decision` by returning a ternary layer that is already made.

    Attributes:
        made: The layer, without a bias.
    """

    made: TernaryLinear

    def __call__(self, weight: Tensor) -> TernaryLinear:
        """Return the layer `made`; the argument `weight` is not used."""
        return self.made


def made(decision: Decision) -> TernaryLinear | None:
    """The ternary layer of a decision, without a bias; None if the layer is not replaced."""
    return decision.build.made if isinstance(decision.build, TernaryBuild) else None


def ternarize_weight(
    name: str,
    weight: Tensor,
    settings: CompressionSettings,
    *,
    random: bool = False,
    moment: Tensor | None = None,
) -> Decision:
    """Make one weight ternary: replace it by s T, with T in {-1, 0, 1} and a scale s in each row.

    Args:
        name: Full name of the module.
        weight: The weight, shape (out, in), on any device; it is not changed.
        settings: The user's settings; `sparsity` and `seed` are read.
        random: Draw T at random instead of rounding the weight. s T then has about the norm of the
            weight.
        moment: Second moment of the inputs x, the mean of x x', shape (in, in); x' is the transpose
            of x. If it is given, s T approximates the outputs of the layer instead of the weight.
            None if it was not measured.

    Returns:
        The decision with the ternary layer. A weight with nan or inf, or of zeros only, is not
        replaced.
    """
    if not torch.isfinite(weight).all():
        return keep(name, weight, Cause.NOT_FINITE, "the weight holds nan or inf")
    if not weight.any():
        return keep(name, weight, Cause.ALL_ZERO, "all weights are zero")
    layer = _drawn(name, weight, settings) if random else _rounded(weight, settings)
    if moment is not None and not random:
        _approximate(layer, weight, settings, moment)
    return _ternarized(name, weight, layer)


def refit_weight(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    settings: CompressionSettings,
    seen: Regression,
    *,
    gain: float = 1.0,
) -> Decision:
    """Fit a model's last layer to its outputs before compression, and make it ternary.

    A ternary weight holds -1, 0 and 1, times a scale in each row. First, ridge regression finds a
    weight that is not ternary. Its penalty is on the distance from the weight before compression,
    divided by `gain`, or from 0 if the setting `weights` is `random`. Then the weight is made
    ternary. At the end, the scales and the bias are fitted.

    Args:
        name: Full name of the module.
        weight: The weight before compression, shape (out, in).
        bias: The bias before compression, shape (out,) or None.
        settings: The user's settings; `sparsity` and `weights` are read.
        seen: Sums over samples of the layer's inputs in the compressed model and its outputs before
            compression.
        gain: The factor by which compression has scaled the layer's inputs, because the activation
            before the layer was replaced by a step activation (see `StepActivation`).

    Returns:
        The decision with the ternary layer and the shift of its bias.
    """
    prior = weight / gain if settings.weights == "trained" else torch.zeros_like(weight)
    fitted, moment, means = seen.solve(prior, bias=bias is not None)
    if not weight.any() or not torch.isfinite(fitted).all() or not fitted.any():
        return ternarize_weight(name, weight, settings)
    if not moment.any():
        result = ternarize_weight(name, weight, settings).noted(UNVARIED)
        layer = made(result)
    else:
        layer = _rounded(fitted.to(weight.dtype), settings)
        _approximate(layer, fitted, settings, moment)
        result = _ternarized(name, weight, layer)
    if bias is None or layer is None:
        return result
    mean_x, mean_y = means.split([weight.shape[1], weight.shape[0]])
    target = mean_y - layer.dense(mean_x.dtype) @ mean_x
    return replace(result, bias_shift=target.to(bias) - bias.detach())


def matched_step(
    function: Callable[[Any], Any], *, mean: float, tau: float, step_tau: float
) -> dict[str, list[float]]:
    """The step activation with two values that matches an activation with inputs of N(mean, tau^2).

    A step activation is piecewise constant; it changes its value at thresholds. It matches the
    activation if both have the same m1, m2 and, if m2 is not 0, m3 of `GaussianMoments`. Both also
    have the same mean output. The step activation has two thresholds. For an odd activation,
    f(-x) = -f(x), it has one, and the match is for inputs of mean 0.

    Args:
        function: The activation, on float64 arrays.
        mean: Mean of the activation's inputs, over samples and neurons.
        tau: Standard deviation of these inputs in the model before compression.
        step_tau: Standard deviation of these inputs in the ternary model.

    Returns:
        `thresholds` and `heights`, as `StepActivation` takes them.

    Raises:
        NoMatchError: If no step activation with the Gaussian moments of the activation is found.

    Examples:
        >>> import numpy as np
        >>> step = matched_step(np.tanh, mean=0.0, tau=1.0, step_tau=1.0)
        >>> step["thresholds"], [round(height, 3) for height in step["heights"]]
        ([0.0], [-0.759, 0.759])
    """
    size, step_size = (tau**2 + mean**2) ** 0.5, (step_tau**2 + mean**2) ** 0.5
    about_zero = gaussian_moments(function, tau=size)
    if abs(about_zero.m2) * size**2 < ODD * about_zero.tau_out:
        mean, tau, step_tau = 0.0, size, step_size
    step = match_step_activation(lambda x: function(x + mean), tau=tau, step_tau=step_tau)
    return {
        "thresholds": [threshold + mean for threshold in step.thresholds],
        "heights": [height + step.target.m0 for height in step.heights],
    }


def check_varied(name: str, moment: Tensor) -> None:
    """Raise an error if a layer's inputs are the same in all samples.

    Args:
        name: Name of the layer.
        moment: Covariance, or second moment, of the layer's inputs, shape (in, in).

    Raises:
        ValueError: If this matrix is zero.
    """
    if not moment.any():
        raise ValueError(
            f"the inputs of {name!r} are the same in all calibration samples, so their variance "
            "cannot be measured; pass a few hundred different samples"
        )


def spread(weight: Tensor, moment: Tensor) -> Tensor:
    """The variance of each output of a layer, shape (out,).

    It is w' C w for the row w of the weight, where w' is the transpose of w.

    Args:
        weight: The weight, shape (out, in).
        moment: C, the covariance of the inputs, shape (in, in).
    """
    wide = weight.to(moment)
    return ((wide @ moment) * wide).sum(1)


def _ternarized(name: str, weight: Tensor, layer: TernaryLinear) -> Decision:
    plan = replace(
        dense_plan(name, weight, Cause.NONE, ""),
        outcome=Outcome.REPLACED,
        kind=TERNARY,
        noise="ternary",
        bits=_bits(layer),
        nonzero=int(layer.dense().count_nonzero()),
    )
    return Decision(plan, build=TernaryBuild(layer))


def _bits(layer: TernaryLinear) -> int:
    """Bits of a ternary weight on disk: one byte for five entries (-1, 0 or 1), plus the scales."""
    codes = -(-layer.in_features * layer.out_features // 5)
    return 8 * (codes + layer.scale.numel() * layer.scale.element_size())


def _approximate(
    layer: TernaryLinear, weight: Tensor, settings: CompressionSettings, moment: Tensor
) -> None:
    """Change a ternary layer in place so that its outputs are close to those of `weight`.

    The scales are fitted. If no sparsity (share of zeros) is set, the entries -1, 0 and 1 are
    chosen again, too. `moment` is the second moment of the inputs x: the mean of x times its
    transpose.
    """
    ridged, signs = damped(moment, RIDGE).float(), layer.dense().sign().float()
    if settings.sparsity is None:
        chosen, layer.scale = descend(signs, layer.scale, weight, ridged)
        layer.weight = pack_trits(chosen)
    else:
        cross = weight.to(ridged) @ ridged
        layer.scale.copy_(fitted_scales(signs, layer.scale.to(ridged), cross, ridged))


def _rounded(weight: Tensor, settings: CompressionSettings) -> TernaryLinear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return TernaryLinear.from_linear(linear, sparsity=settings.sparsity)


def _drawn(name: str, weight: Tensor, settings: CompressionSettings) -> TernaryLinear:
    """A ternary layer whose entries -1, 0 and 1 are random, not rounded from the weight.

    All rows have the same scale. With it, the layer has about the norm of the weight. The entries
    are the same on every process.
    """
    rows, columns = weight.shape
    sparsity = RANDOM_SPARSITY if settings.sparsity is None else settings.sparsity
    seed = int(layer_generator(settings.seed, name).integers(2**31))
    drawn = TernaryLinear.random(columns, rows, sparsity, seed, device=weight.device)
    size = weight.float().square().mean().sqrt()
    drawn.scale = (drawn.scale * size).expand(rows).to(weight.dtype, copy=True)
    return drawn
