from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from hf_rmt.kernels import StepActivation, gaussian_moments

TAUS = [0.3, 1.0, 2.5]


def average(values, xi):
    return np.trapezoid(values * norm.pdf(xi), xi)


@pytest.mark.parametrize("tau", TAUS)
def test_relu_and_leaky_relu_in_closed_form(tau):
    relu, leaky = (gaussian_moments(name, tau=tau) for name in ("relu", "leaky_relu"))
    root = np.sqrt(2 * np.pi)
    expected = [tau / root, 0.5, 1 / (tau * root), 0.5 - 1 / (2 * np.pi), tau**2 / 2, 0.5]
    measured = [relu.m0, relu.m1, relu.m2, relu.m3, relu.second_moment, relu.slope_second_moment]
    np.testing.assert_allclose(measured, expected, rtol=1e-12)
    variance = tau**2 * (0.5 - 1 / (2 * np.pi))
    assert relu.tau_out == pytest.approx(np.sqrt(variance), rel=1e-12)
    assert relu.d0 == pytest.approx(variance - tau**2 / 4, rel=1e-12)
    assert (relu.d1, relu.d2) == pytest.approx((0.25, 1 / (8 * np.pi * tau**2)), rel=1e-12)
    assert (leaky.m1, leaky.m2) == pytest.approx((0.505, 0.99 / (tau * root)), rel=1e-12)
    assert leaky.slope_second_moment == pytest.approx((1 + 1e-4) / 2, rel=1e-12)


@pytest.mark.parametrize("tau", TAUS)
def test_smooth_moments_are_those_of_the_derivatives(tau):
    """tanh' and tanh'' by hand; the trapezoidal rule is exact to rounding on such integrands."""
    xi = np.linspace(-12, 12, 40_001)
    value = np.tanh(tau * xi - 0.4)
    slope = 1 - value**2
    bend = -2 * value * slope
    moments = gaussian_moments(lambda x: np.tanh(x - 0.4), tau=tau)
    mean = average(value, xi)
    expected = [
        mean,
        average(slope, xi),
        average(bend, xi),
        average(slope**2 + (value - mean) * bend, xi),
        average(slope**2, xi),
        average(-2 * slope**2 + 4 * value**2 * slope, xi),
    ]
    names = ["m0", "m1", "m2", "m3", "slope_second_moment"]
    measured = [getattr(moments, name) for name in names] + [moments.derivative_means[3]]
    np.testing.assert_allclose(measured, expected, rtol=1e-10, atol=1e-12)


def test_kinks_and_jumps_are_found_wherever_they_lie():
    tau, at = 1.3, 0.7123
    u = at / tau
    kink = gaussian_moments(lambda x: np.maximum(x - at, 0), tau=tau)
    assert kink.m1 == pytest.approx(norm.sf(u), rel=1e-12)
    assert kink.m2 == pytest.approx(norm.pdf(u) / tau, rel=1e-12)
    assert kink.slope_second_moment == pytest.approx(norm.sf(u), rel=1e-12)
    jump = gaussian_moments(lambda x: np.where(x > at, 1.0, 0.0), tau=tau)
    assert jump.m1 == pytest.approx(norm.pdf(u) / tau, rel=1e-12)
    assert jump.slope_second_moment == np.inf
    assert gaussian_moments("sign", tau=tau).slope_second_moment == np.inf
    steep = gaussian_moments(lambda x: np.tanh(500 * x), tau=tau)
    assert steep.slope_second_moment == pytest.approx(500 * 4 / 3 * norm.pdf(0) / tau, rel=1e-4)


@pytest.mark.parametrize("name", ["relu", "gelu", "hardswish", "tanh"])
def test_slopes_are_derivatives_by_the_variance(name):
    """Central differences at a fixed centre; their error is of order step^2."""
    tau, step = 0.8, 1e-4
    moments = gaussian_moments(name, tau=tau)
    above, below = (gaussian_moments(name, tau=np.sqrt(tau**2 + h)) for h in (step, -step))

    def energy(at):
        return at.second_moment - 2 * at.m0 * moments.m0 + moments.m0**2

    assert moments.m3 == pytest.approx((energy(above) - energy(below)) / (2 * step), rel=1e-6)
    second = (energy(above) - 2 * moments.tau_out**2 + energy(below)) / step**2
    assert moments.variance_slopes[2] == pytest.approx(second, rel=1e-4)
    means = (np.array(above.derivative_means[:3]) - below.derivative_means[:3]) / step
    np.testing.assert_allclose(means, moments.derivative_means[2:5], rtol=1e-5, atol=1e-6)
    if name != "relu":
        slope = (above.slope_second_moment - below.slope_second_moment) / (2 * step)
        assert moments.slope_slopes[1] == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("tau", TAUS)
def test_steps_in_closed_form_are_those_of_the_quadrature(tau):
    step = StepActivation((-1.1, 0.2, 0.9), (0.7, -0.4, 0.1, 2.0))
    closed, numeric = step.moments_at(tau), gaussian_moments(lambda x: step(x), tau=tau)
    assert gaussian_moments(step, tau=tau) == closed
    np.testing.assert_allclose(closed.derivative_means, numeric.derivative_means, atol=1e-9)
    np.testing.assert_allclose(closed.variance_slopes, numeric.variance_slopes, atol=1e-9)
    assert closed.slope_slopes == numeric.slope_slopes == (np.inf,) * 3


def test_steps_are_open_to_the_left():
    step = StepActivation((-1.0, 1.0), (5.0, 6.0, 5.0))
    np.testing.assert_array_equal(step([[-1.0, -0.5], [1.0, 1.5]]), [[5, 6], [6, 5]])
    assert step.levels == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_moments("relu", tau=0.0), "tau must be positive and finite, got 0.0"),
        (lambda: gaussian_moments(lambda x: x.sum(), tau=1.0), "vectorise"),
        (lambda: gaussian_moments(np.log, tau=1.0), "finite numbers"),
        (lambda: gaussian_moments(lambda x: np.sin(1e9 * x), tau=1.0), "piecewise smooth"),
        (
            lambda: gaussian_moments("relu", tau=1e200),
            r"lie in \[4.6e-34, 2.2e\+33\].* other units",
        ),
        (lambda: gaussian_moments("relu", tau=1e-200), r"got 1e-200; measure"),
        (lambda: gaussian_moments("relu", tau=1e-3, degree=80), r"lie in \[0.0032, 3.2e\+02\]"),
        (lambda: gaussian_moments(lambda x: x**8, tau=1e32), "squares of the values"),
        (lambda: gaussian_moments("relu", tau=1.0, degree=-1), "degree must be at least 0, got -1"),
        (lambda: StepActivation((0.0,), (-1.0, 1.0)).moments_at(1e-200), "lie in .* got 1e-200"),
        (lambda: StepActivation((1.0, 1.0), (0.0, 1.0, 2.0)), "ascend"),
        (lambda: StepActivation((1.0,), (0.0,)), "one height for each"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": "a"}, "tau must be a number, got 'a'"),
        ({"tau": True}, "tau must be a number, got True"),
        ({"tau": np.ones(2)}, "tau must be a number, got array"),
        ({"tau": 1.0, "degree": 1.5}, "degree must be an integer of at least 0, got 1.5"),
    ],
)
def test_arguments_of_another_type_are_refused(options, message):
    for activation in ("relu", StepActivation((0.0,), (-1.0, 1.0))):
        with pytest.raises(TypeError, match=message):
            gaussian_moments(activation, **options)
