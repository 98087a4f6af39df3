"""Formulas that approximate the kernels of wide networks, the matrices that compare inputs.

For inputs with p features, the error of a formula is of order sqrt(log p / p) with `order=1`, and
of order 1 / p with `order=2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.kernels.activations import Activation, Array
from hf_rmt.kernels.gaussian_moments import GaussianMoments, gaussian_moments
from hf_rmt.kernels.next_order import evaluate, kernel_polynomials
from hf_rmt.kernels.statistics import MixtureStatistics, check_data, mixture_statistics


@dataclass(frozen=True)
class KernelCoefficients:
    """The coefficients in the formulas for one layer's kernels, the matrices that compare inputs.

    They are computed from the activations up to this layer.

    Args:
        tau: tau_l, the root mean square norm of the outputs of layer l.
        alpha: alpha_1 .. alpha_4 of the conjugate kernel, as in `kernel_coefficients`.
        beta: beta_1 .. beta_3 of the neural tangent kernel, as in `kernel_coefficients`.
        kappa: kappa_l, the square root of the neural tangent kernel's diagonal; infinite after an
            activation with a jump.
    """

    tau: float
    alpha: tuple[float, float, float, float]
    beta: tuple[float, float, float]
    kappa: float


def kernel_coefficients(
    activations: Sequence[Activation], *, tau: float
) -> tuple[KernelCoefficients, ...]:
    """Coefficients of the conjugate kernel (CK) and the neural tangent kernel for all layers.

    The kernels are matrices that compare inputs; `conjugate_kernel_equivalent` and `ntk_equivalent`
    approximate them by sums with these coefficients. Below, a stands for alpha and b for beta. The
    first values, for the inputs, are a = (1, 0, 0, 1), b = (1, 0, 0) and kappa = tau. A prime marks
    the next layer. Its activation s has the moments m1, m2 and m3 of `GaussianMoments`, tau' is
    their `tau_out`, and E s'^2 is the mean square of the slope of s:

    a1' = m1^2 a1, a2' = m1^2 a2 + m2^2 a4^2 / 4, a3' = m1^2 a3 + m2^2 a1^2 / 2, a4' = m3 a4;
    b1' = a1' + m1^2 b1, b2' = a2' + m1^2 b2, b3' = a3' + m1^2 b3 + m2^2 a1 b1;
    kappa'^2 = tau'^2 + kappa^2 E s'^2.

    Args:
        activations: One activation for each hidden layer.
        tau: tau_0, the root mean square norm of the inputs.

    Returns:
        L + 1 sets of coefficients for L activations; the first set belongs to the inputs.

    Source:
        Gu et al., NeurIPS 2022, theorems 1 and 2.

    Examples:
        >>> round(kernel_coefficients(["relu"], tau=1.0)[-1].alpha[0], 12)
        0.25
    """
    layers = [KernelCoefficients(tau, (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0), tau)]
    for moments in layer_moments(activations, tau=tau):
        layers.append(_next_layer(layers[-1], moments))
    return tuple(layers)


def layer_moments(activations: Sequence[Activation], *, tau: float) -> tuple[GaussianMoments, ...]:
    """The `GaussianMoments` of each activation, at the scale of its arguments in the network.

    The scale is the standard deviation of the arguments. It is tau for the first activation. For
    each other activation, it is the `tau_out` of the activation before.

    Args:
        activations: One activation for each hidden layer, at least one.
        tau: tau_0, the root mean square norm of the inputs.

    Returns:
        One set of moments for each layer.

    Raises:
        ValueError: If `activations` is a single name or empty.
    """
    if isinstance(activations, str) or not len(activations):
        raise ValueError(
            f"activations must hold one activation for each hidden layer, got {activations!r}; "
            "pass a list"
        )
    layers: list[GaussianMoments] = []
    for activation in activations:
        layers.append(gaussian_moments(activation, tau=tau))
        tau = layers[-1].tau_out
    return tuple(layers)


def _next_layer(below: KernelCoefficients, moments: GaussianMoments) -> KernelCoefficients:
    m1, m2 = moments.m1**2, moments.m2**2
    a1, a2, a3, a4 = below.alpha
    b1, b2, b3 = below.beta
    alpha = (m1 * a1, m1 * a2 + m2 * a4**2 / 4, m1 * a3 + m2 * a1**2 / 2, moments.m3 * a4)
    beta = (alpha[0] + m1 * b1, alpha[1] + m1 * b2, alpha[2] + m1 * b3 + m2 * a1 * b1)
    kappa = np.sqrt(moments.tau_out**2 + below.kappa**2 * moments.slope_second_moment)
    return KernelCoefficients(moments.tau_out, alpha, beta, float(kappa))


def conjugate_kernel_equivalent(
    data: ArrayLike,
    activations: Sequence[Activation],
    *,
    statistics: MixtureStatistics | None = None,
    order: int = 1,
    published: bool = False,
) -> Array:
    """The conjugate kernel (CK) of L wide layers, approximated by a formula.

    This kernel is the expected Gram matrix of the outputs of the last hidden layer:

    K~_CK = a1 X'X + V A V' + (tau_L^2 - tau_0^2 a1) I, with V A V' = a2 v v' + a3 J T J' / p. The
    vector v = J t / sqrt p + psi holds the numbers |x_i|^2 - tau_0^2. The a are the `alpha` of
    `kernel_coefficients`; J, t, T and psi are in `MixtureStatistics`, and X, p, tau_0 and tau_L in
    `hf_rmt.kernels`. I is the identity. The published formula also subtracts tau_0^4 a3 from the
    multiple of I. Then the distance to the kernel tends to a3 tau_0^4, not to 0. The subtraction
    would be right if a3 multiplied X'X o X'X, the entrywise square of X'X. But a3 multiplies
    J T J' / p, which has a smaller diagonal.

    Args:
        data: Inputs divided by sqrt p, shape (samples, features): the rows are the x_i.
        activations: One activation for each hidden layer; its mean is subtracted here.
        statistics: Statistics of the Gaussian mixture; None estimates them from the data, as if all
            inputs were of one class.
        order: 1 for the formula above; its error in operator norm is of order sqrt(log p / p). 2
            for more terms: X'X o X'X, the diagonal and every term of the third degree (see the
            module `hf_rmt.kernels.next_order`); its error is of order 1 / p.
        published: Whether to subtract tau_0^4 a3 from the multiple of I, as published; only with
            order=1.

    Returns:
        The kernel, shape (samples, samples).

    Raises:
        ValueError: If an argument lies outside its range.

    Source:
        Gu et al., NeurIPS 2022, theorem 1; order 2 was derived for this package.
    """
    return _equivalent(data, activations, statistics, order, published, tangent=False)


def ntk_equivalent(
    data: ArrayLike,
    activations: Sequence[Activation],
    *,
    statistics: MixtureStatistics | None = None,
    order: int = 1,
    published: bool = False,
) -> Array:
    """The neural tangent kernel (NTK) of L wide layers, approximated by a formula.

    This kernel is the expected Gram matrix of the network's gradients:

    K~_NTK = b1 X'X + V B V' + (kappa_L^2 - tau_0^2 b1) I. Here b1, b2 and b3 are the `beta` of
    `kernel_coefficients` for the last layer, and kappa_L is the `kappa` of this layer. V B V' has
    the formula of V A V' in `conjugate_kernel_equivalent`, with b2 in place of a2 and b3 in place
    of a3. X and tau_0 are those of `hf_rmt.kernels`, and I is the identity.

    Args:
        data: Inputs divided by sqrt p, shape (samples, features): the rows are the x_i.
        activations: One activation without jumps for each hidden layer.
        statistics: Statistics of the Gaussian mixture; None estimates them from the data, as if all
            inputs were of one class.
        order: 1 or 2, as for `conjugate_kernel_equivalent`.
        published: Whether to subtract tau_0^4 b3 from the multiple of I, as published; only with
            order=1. `conjugate_kernel_equivalent` explains why the default does not.

    Returns:
        The kernel, shape (samples, samples).

    Raises:
        ValueError: If an activation jumps (the mean square of its slope is infinite), or an
            argument is out of range.

    Source:
        Gu et al., NeurIPS 2022, theorem 2; order 2 was derived for this package.
    """
    return _equivalent(data, activations, statistics, order, published, tangent=True)


def _equivalent(
    data: ArrayLike,
    activations: Sequence[Activation],
    statistics: MixtureStatistics | None,
    order: int,
    published: bool,
    *,
    tangent: bool,
) -> Array:
    inputs = check_data(data)
    known = statistics or mixture_statistics(inputs)
    _check_options(order, published, len(inputs), len(known.psi))
    layers = layer_moments(activations, tau=known.tau)
    if tangent and not np.isfinite([layer.slope_second_moment for layer in layers]).all():
        raise ValueError(
            "an activation that jumps has no NTK: the mean square of its slope is infinite; use "
            "conjugate_kernel_equivalent"
        )
    gram = inputs @ inputs.T
    if order == 2:
        deviations = np.diag(gram) - known.tau**2
        return evaluate(*kernel_polynomials(layers, tangent=tangent), gram, deviations)
    top = kernel_coefficients(activations, tau=known.tau)[-1]
    first, second, third = top.beta if tangent else top.alpha[:3]
    identity = (top.kappa if tangent else top.tau) ** 2 - known.tau**2 * first
    identity -= known.tau**4 * third if published else 0.0
    low_rank = _low_rank(known, second, third, inputs.shape[1])
    return first * gram + low_rank + identity * np.eye(len(gram))


def _low_rank(known: MixtureStatistics, second: float, third: float, features: int) -> Array:
    """The matrix V A V' in the formula of `conjugate_kernel_equivalent`.

    `second` stands for a2 in this formula, and `third` for a3.
    """
    deviations = known.classes @ known.traces / np.sqrt(features) + known.psi
    classes = known.classes @ known.products @ known.classes.T / features
    return second * np.outer(deviations, deviations) + third * classes


def _check_options(order: int, published: bool, inputs: int, described: int) -> None:
    if order not in (1, 2) or (published and order != 1):
        raise ValueError(
            f"order must be 1 or 2, and 1 with published=True, got {order}; pass order=1"
        )
    if inputs != described:
        raise ValueError(
            f"statistics must describe the data's {inputs} inputs, got {described}; compute them "
            "from the same data with mixture_statistics"
        )
