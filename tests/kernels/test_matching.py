from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_rmt.kernels import (
    NoMatchError,
    exact_kernels,
    gaussian_moments,
    match_network,
    match_step_activation,
    match_ternary_activation,
)
from hf_rmt.kernels.quantizer import quantized
from hf_rmt.kernels.simulation import gaussian_mixture, simulated_kernels
from hf_rmt.kernels.steps import matched_quantities

FIELDS = ("m1", "m2", "m3", "tau_out")


def measured(step, tau, fields=FIELDS):
    """Moments by quadrature, which knows nothing of the closed forms."""
    moments = gaussian_moments(lambda x: step(x), tau=tau)
    assert moments.m0 == pytest.approx(0, abs=1e-9)
    return [getattr(moments, field) for field in fields]


def wanted(name, tau, fields=FIELDS):
    moments = gaussian_moments(name, tau=tau)
    return [getattr(moments, field) for field in fields]


def spread(symmetric, reference):
    """Relative distance after centring, without and with the nearest multiple of P taken off."""
    n = len(symmetric)
    centre = np.eye(n) - 1 / n
    values = np.linalg.eigvalsh(centre @ (symmetric - reference) @ centre)
    scale = np.linalg.eigvalsh(centre @ reference @ centre)[-1]
    values = np.delete(values, np.abs(values).argmin())
    return np.abs(values).max() / scale, (values[-1] - values[0]) / 2 / scale


@pytest.mark.parametrize("tau", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "gelu_new", "leaky_relu", "relu2"])
def test_one_level_has_the_three_moments(name, tau):
    step = match_step_activation(name, tau=tau)
    assert step.levels == 1
    assert len(step.thresholds) == 2
    assert step.residual < 1e-8
    np.testing.assert_allclose(measured(step, tau, FIELDS[:3]), wanted(name, tau, FIELDS[:3]), 1e-8)
    variance = gaussian_moments(name, tau=tau).tau_out ** 2
    assert step.identity_shift == pytest.approx(step.moments.tau_out**2 - variance)
    assert step.identity_shift > 0


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "linear"])
def test_odd_activations_need_a_sign(name):
    step = match_step_activation(name, tau=0.7)
    assert step.thresholds == (0.0,)
    assert step.heights[0] == -step.heights[1]
    np.testing.assert_allclose(
        measured(step, 0.7, ["m1", "m2"]), wanted(name, 0.7, ["m1", "m2"]), atol=1e-9
    )


def test_reflections_are_matched_by_reflections():
    step = match_step_activation("relu", tau=1.0)
    for mirrored, sign in ((lambda x: np.maximum(-x, 0), 1), (lambda x: -np.maximum(-x, 0), -1)):
        other = match_step_activation(mirrored, tau=1.0)
        np.testing.assert_allclose(other.thresholds, -np.array(step.thresholds)[::-1])
        np.testing.assert_allclose(other.heights, sign * np.array(step.heights)[::-1])


@pytest.mark.parametrize(("name", "levels"), [("relu", 7), ("relu", 12), ("gelu", 11), ("tanh", 6)])
def test_more_levels_meet_tau_exactly(name, levels):
    step = match_step_activation(name, tau=1.0, levels=levels)
    assert step.levels == levels
    assert step.residual < 1e-8
    assert step.identity_shift == pytest.approx(0, abs=1e-8)
    fields = [field for field in FIELDS if name != "tanh" or field != "m3"]
    np.testing.assert_allclose(measured(step, 1.0, fields), wanted(name, 1.0, fields), atol=1e-8)


@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_the_fewest_levels_come_first(name):
    fewest = match_step_activation(name, tau=3.0, levels=None)
    with pytest.raises(NoMatchError, match="tau_out") as caught:
        match_step_activation(name, tau=3.0, levels=fewest.levels - 1)
    assert caught.value.residual > 1e-4


def test_the_published_two_level_family_has_no_solution():
    """Two values hold 0.66 of their variance in the first two Hermite terms, relu needs 0.97."""
    for name in ("relu", "gelu", "silu"):
        with pytest.raises(NoMatchError, match=r"To meet tau_out, 0\.9\d\d of a step") as caught:
            match_step_activation(name, tau=1.0, levels=2, published=True)
        assert 0.1 < caught.value.residual < 1


def test_the_published_family_is_solved_where_it_has_a_solution():
    """A target of the family itself, far from linear; its height knows m3^2 only, not m3."""

    def square(x):
        return np.where((x < -1.9) | ((x > -0.9) & (x <= 0.8)) | (x > 1.8), 1.0, 0.0)

    step = match_step_activation(square, tau=1.0, levels=2, published=True)
    assert len(step.thresholds) == 4
    gaps = np.diff(step.thresholds)
    assert gaps[0] == pytest.approx(gaps[2])
    fields = ["m1", "m2", "tau_out"]
    np.testing.assert_allclose(measured(step, 1.0, fields), wanted(square, 1.0, fields), atol=1e-8)
    assert abs(step.moments.m3) == pytest.approx(abs(step.target.m3))


def test_scales_change_nothing_but_the_scale():
    step = match_step_activation("relu", tau=1.0, levels=8)
    wide = match_step_activation(lambda x: 5 * np.maximum(x, 0), tau=2.0, levels=8)
    np.testing.assert_allclose(np.array(wide.thresholds) / 2, step.thresholds, atol=1e-6)
    np.testing.assert_allclose(np.array(wide.heights) / 10, step.heights, atol=1e-6)
    assert match_step_activation("relu", tau=1.0, levels=8) == step


def test_a_step_may_live_at_another_scale():
    step = match_step_activation("relu", tau=0.6, step_tau=0.9)
    np.testing.assert_allclose(measured(step, 0.9, FIELDS[:3]), wanted("relu", 0.6, FIELDS[:3]))


def test_tau_out_cannot_be_met_above_a_step_that_does_not_meet_it():
    """The linear and quadratic part alone then has more variance than the target."""
    below = match_step_activation("relu", tau=1.0)
    scales = {"tau": below.target.tau_out, "step_tau": below.moments.tau_out}
    assert match_step_activation("relu", **scales).residual < 1e-8
    with pytest.raises(NoMatchError, match=r"tau_out, 2\.\d* of .* no number does: match tau_out"):
        match_step_activation("relu", **scales, levels=None)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_ternary_steps_have_d1_and_d2_and_the_least_d0(name):
    """Against every pair of thresholds on a grid that gives d1 / d2 its value to 1e-2."""
    step = match_ternary_activation(name, tau=1.0)
    np.testing.assert_allclose(
        measured(step, 1.0, ["d1", "d2"]), wanted(name, 1.0, ["d1", "d2"]), 1e-7, 1e-12
    )
    assert np.diff(step.heights)[0] == pytest.approx(np.diff(step.heights)[1])
    m1, m2 = wanted(name, 1.0, ["m1", "m2"])
    least = np.inf
    for low in np.arange(-2, 2, 0.05):
        for high in np.arange(low + 0.05, 3, 0.05):
            found = matched_quantities(np.array([low, high]), np.array([-1.0, 0.0, 1.0]))[0]
            if abs(found[1] / found[0] - m2 / m1) < 0.01:
                least = min(least, found[3] * (m1 / found[0]) ** 2)
    assert step.moments.tau_out**2 < 1.01 * least


def test_ternary_steps_meet_d0_where_they_can():
    step = match_ternary_activation("laplace", tau=1.0)
    assert step.identity_shift == pytest.approx(0, abs=1e-8)


@pytest.fixture(scope="module")
def mixture():
    return gaussian_mixture((200, 200), seed=1)[0]


def test_the_kernels_of_matched_networks_agree(mixture):
    """Modulo the identity with one level, without it when tau_out is met too; p = 200, exact."""
    for activations in (["relu"], ["relu", "relu"]):
        dense = exact_kernels(mixture, activations, tau=1.0).conjugate
        one, exact = (
            exact_kernels(mixture, match_network(activations, tau=1.0, levels=levels), tau=1.0)
            for levels in (1, None)
        )
        plain, modulo = spread(one.conjugate, dense)
        assert modulo < 0.06 < 0.2 < plain
        plain, _ = spread(exact.conjugate, dense)
        assert plain < 0.02


def test_ternary_networks_with_matched_steps_have_the_dense_kernel():
    """The noise is some 2 sqrt(60 / 20,000) = 0.11 of a bulk that is less than the norm."""
    data = gaussian_mixture((60, 200), seed=1)[0]
    dense = exact_kernels(data, ["relu"], tau=1.0).conjugate
    options = {"tau": 1.0, "width": 20_000, "sparsity": 0.9, "seed": 2}
    one, seven = (
        spread(simulated_kernels(data, [step], **options).conjugate, dense)
        for step in (
            match_step_activation("relu", tau=1.0),
            match_step_activation("relu", tau=1.0, levels=7),
        )
    )
    assert one[1] < 0.15
    assert seven[0] < 0.1
    naive = simulated_kernels(data, [lambda x: 1.0 * (np.abs(x) > 1)], **options).conjugate
    assert spread(naive, dense)[1] > 0.3


def test_the_derivatives_of_the_moments_are_their_differences():
    points, heights = np.array([-1.2, -0.1, 0.8]), np.array([0.3, -1.0, 0.5, 2.0])
    _, by_points, by_heights = matched_quantities(points, heights)
    for j in range(3):
        shift = 1e-6 * np.eye(3)[j]
        above, below = (matched_quantities(points + s, heights)[0] for s in (shift, -shift))
        np.testing.assert_allclose(by_points[:, j], (above - below) / 2e-6, atol=1e-8)
    for j in range(4):
        shift = 1e-6 * np.eye(4)[j]
        above, below = (matched_quantities(points, heights + s)[0] for s in (shift, -shift))
        np.testing.assert_allclose(by_heights[:, j], (above - below) / 2e-6, atol=1e-8)


@pytest.mark.parametrize(("levels", "distortion"), [(2, 0.1902), (3, 0.1175), (7, 0.03454)])
def test_the_best_quantisers_of_a_normal_variable_are_those_of_the_literature(levels, distortion):
    """Distortions from Max 1960; 60 sweeps and the grid leave 2e-4."""
    best = quantized(lambda xi: 3 * xi, levels)
    assert 1 - best.share == pytest.approx(distortion, abs=2e-4)
    np.testing.assert_allclose(best.points, -best.points[::-1], atol=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: match_step_activation("relu", tau=-1.0), "tau must be positive"),
        (lambda: match_step_activation("relu", tau=1.0, step_tau=0.0), "finite, got 0.0"),
        (lambda: match_step_activation("relu", tau=1.0, levels=0), r"lie in \[1, 63\]"),
        (lambda: match_step_activation("relu", tau=1.0, published=True), "pass levels=2"),
        (lambda: match_step_activation(lambda x: x**3 - 3 * x, tau=1.0), "nothing to match"),
        (lambda: match_step_activation(lambda x: 0 * x, tau=1.0), "values differ by 0 around"),
        (lambda: match_step_activation(lambda x: 1 + 0 * x, tau=1.0), "is constant at tau=1.0"),
        (lambda: match_ternary_activation(lambda x: 0 * x, tau=1.0), "pass an activation that"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("levels", [1.5, "a", True])
def test_levels_that_are_no_whole_number_are_refused(levels):
    with pytest.raises(TypeError, match=r"levels must be a whole number in \[1, 63\] or None"):
        match_step_activation("gelu", tau=1.0, levels=levels)


def test_a_failure_speaks_of_the_moments_that_were_asked_for():
    def nearly_odd(x):
        return x + 1e-8 * x**2

    def message(activation="relu", tau=1.0, **options):
        with pytest.raises(NoMatchError) as caught:
            match_step_activation(activation, tau=tau, **options)
        return str(caught.value)

    one = message(nearly_odd, levels=1)
    assert "the m1, m2 and m3 of" in one
    assert "was found" in one
    assert "tau_out" not in one
    assert "levels=None" not in one  # the linear and quadratic part has all of the variance
    fewest = message("gelu", tau=0.3, levels=None)
    assert "levels=None" not in fewest
    assert "no number up to 63 does; pass levels=1, for which tau_out does not" in fewest
    three = message(levels=3)
    assert "To meet tau_out, 0.967 of a step's variance" in three
    assert "levels=3 reaches at most 0.9" in three
    assert "pass levels=None for the smallest number" in three
    assert "pass published=False, and levels=None" in message(levels=2, published=True)


@pytest.mark.parametrize("match", [match_step_activation, match_ternary_activation])
@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.relu, lambda x: x.clamp(min=0)])
def test_functions_of_tensors_are_refused_with_what_to_wrap_them_in(match, activation):
    with pytest.raises(TypeError, match=r"of float64 arrays, got .* activation\(torch.from_numpy"):
        match(activation, tau=1.0)
    wrapped = match(lambda x: activation(torch.from_numpy(x)).detach().numpy(), tau=1.0)
    np.testing.assert_allclose(wrapped.heights, match("relu", tau=1.0).heights)
