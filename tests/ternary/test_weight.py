"""Ternary weights, least squares of the last layer, and steps for activations with a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_rmt.compression.calibration.low_rank import damped
from hf_rmt.kernels import NoMatchError
from hf_rmt.nn.stores.ternary_packing import ternarize
from hf_rmt.settings import CompressionSettings
from hf_rmt.ternary.coordinate_descent import descend
from hf_rmt.ternary.weight import (
    RIDGE,
    Regression,
    made,
    matched_step,
    refit_weight,
    ternarize_weight,
)

SETTINGS = CompressionSettings(method="ntk")


def samples(count: int = 500, width: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs with a mean, and a weight."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator)
    x = torch.randn(count, width, generator=generator) @ mixing + 2
    return x, torch.randn(3, width, generator=generator)


def ridged(x: torch.Tensor) -> torch.Tensor:
    """The samples, and more of them that have the second moment of the ridge."""
    count, width = x.shape
    ridge = RIDGE * float(x.square().sum()) / count / width
    return torch.cat([x, (count * ridge) ** 0.5 * torch.eye(width).to(x)])


def sums(x: torch.Tensor, y: torch.Tensor) -> Regression:
    count = torch.tensor(float(len(x)))
    return Regression(count, x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))


def test_the_plan_counts_codes_and_scales() -> None:
    weight = samples()[1]
    result = ternarize_weight("head", weight, SETTINGS)
    signs, scales = ternarize(weight)
    new = signs * scales[:, None]
    assert torch.equal(result.layer(weight).dense(), new)
    plan = result.plan
    assert (plan.kind, plan.bits) == ("ternary", 8 * 18 + 3 * 32)
    assert plan.nonzero == int(signs.count_nonzero())
    assert plan.dropped_energy == 0


@pytest.mark.parametrize("sparsity", [None, 0.7])
def test_scales_of_least_output_error(sparsity: float | None) -> None:
    x, weight = samples()
    moment = x.T @ x / len(x)
    settings = CompressionSettings(method="ntk", sparsity=sparsity)
    layer = made(ternarize_weight("head", weight, settings, moment=moment))
    signs = layer.dense().sign()
    x = ridged(x)
    y, z = (x @ weight.T).numpy(), (x @ signs.T).numpy()
    best = [np.linalg.lstsq(z[:, [i]], y[:, i], rcond=None)[0][0] for i in range(3)]
    np.testing.assert_allclose(layer.scale.numpy(), best, rtol=1e-4)
    if sparsity is not None:
        assert torch.equal(signs.char(), ternarize(weight, sparsity=sparsity)[0])


def test_entries_are_chosen_for_the_outputs_where_sparsity_is_free() -> None:
    x, weight = samples()
    moment = x.T @ x / len(x)
    layer = made(ternarize_weight("head", weight, SETTINGS, moment=moment))
    expected, _ = descend(*ternarize(weight), weight, damped(moment, RIDGE).float())
    assert torch.equal(layer.dense().sign().char(), expected)
    assert not torch.equal(expected, ternarize(weight)[0])


def test_random_weights_are_drawn_by_name_and_seed() -> None:
    weight = torch.randn(200, 100) * 0.3 + 0.1
    layers = [
        made(ternarize_weight(name, weight, settings, random=True)).dense()
        for name, settings in (
            ("a", SETTINGS),
            ("a", SETTINGS),
            ("b", SETTINGS),
            ("a", CompressionSettings(method="ntk", seed=1)),
        )
    ]
    assert torch.equal(layers[0], layers[1])
    assert not any(torch.equal(layers[0], other) for other in layers[2:])
    assert float((layers[0] == 0).float().mean()) == pytest.approx(1 / 3, abs=0.02)
    # relative fluctuation of the mean square over 20,000 entries: sqrt(1/2 / 20,000) = 0.005
    assert float(layers[0].square().mean() / weight.square().mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_by_normal_equations(bias: bool) -> None:
    x, weight = samples()
    y = x @ weight.T + torch.randn(len(x), 3) + 5
    prior = torch.randn(3, 30, generator=torch.Generator().manual_seed(2))
    fitted = sums(x.double(), y.double()).solve(prior, bias=bias)[0]
    a, b = x.double().numpy(), y.double().numpy()
    if bias:
        a, b = a - a.mean(0), b - b.mean(0)
    gram = a.T @ a / len(a)
    ridge = RIDGE * np.trace(gram) / 30
    right = a.T @ b / len(a) + ridge * prior.T.double().numpy()
    naive = np.linalg.solve(gram + ridge * np.eye(30), right).T
    np.testing.assert_allclose(fitted.numpy(), naive, rtol=1e-6)


def test_a_refit_has_least_error_in_scales_and_bias() -> None:
    x, weight = samples()
    y = x @ weight.T + 5
    bias = torch.tensor([1.0, 2.0, 3.0])
    result = refit_weight("head", weight, bias, SETTINGS, sums(x.double(), y.double()))
    layer = made(result)
    output = x @ layer.dense().T + bias + result.bias_shift
    np.testing.assert_allclose(output.mean(0).numpy(), y.mean(0).numpy(), rtol=1e-4, atol=1e-3)
    centred = ridged((x - x.mean(0)).double())
    z, wanted = centred @ layer.dense().double().T, centred @ weight.double().T
    slope = (z * wanted).sum(0) / z.square().sum(0)
    np.testing.assert_allclose(slope.numpy(), 1, rtol=1e-3)
    unfitted = x @ made(ternarize_weight("head", weight, SETTINGS)).dense().T
    assert (output - y).var(dim=0).sum() < (unfitted - y).var(dim=0).sum()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_weight_without_numbers_stays_dense(bad: float) -> None:
    weight = torch.full((3, 4), bad)
    result = ternarize_weight("head", weight, SETTINGS)
    assert not result.plan.compressed
    with pytest.raises(ValueError, match="head stays dense"):
        result.layer(weight)
    nothing = Regression(*(torch.zeros(shape) for shape in ((), 4, 3, (4, 4), (4, 3), 3)))
    assert not refit_weight("head", weight, None, SETTINGS, nothing).plan.compressed


def gelu(x: Any) -> Any:
    return torch.nn.functional.gelu(torch.tensor(x)).numpy()


def test_a_step_has_the_moments_of_a_shifted_activation() -> None:
    mean, tau, step_tau = -0.4, 0.9, 0.8
    step = matched_step(gelu, mean=mean, tau=tau, step_tau=step_tau)
    xi = np.random.default_rng(0).standard_normal(1_000_000)
    heights = np.array(step["heights"])
    stepped = heights[np.searchsorted(step["thresholds"], mean + step_tau * xi)]
    smooth = gelu(mean + tau * xi)
    # Monte Carlo: standard deviations of order 1 over 1000
    assert stepped.mean() == pytest.approx(smooth.mean(), abs=4e-3)
    slopes = [(xi * each).mean() / size for each, size in ((stepped, step_tau), (smooth, tau))]
    assert slopes[0] == pytest.approx(slopes[1], abs=6e-3)
    bends = [
        ((xi**2 - 1) * each).mean() / size**2 for each, size in ((stepped, step_tau), (smooth, tau))
    ]
    assert bends[0] == pytest.approx(bends[1], abs=1.2e-2)


def test_an_odd_activation_is_matched_about_zero_with_the_mean_in_its_scale() -> None:
    step = matched_step(np.tanh, mean=0.3, tau=0.4, step_tau=0.4)
    same = matched_step(np.tanh, mean=0.0, tau=0.5, step_tau=0.5)
    assert step["thresholds"] == [0.0]
    assert step["heights"] == pytest.approx(same["heights"], rel=1e-9)


def test_the_step_for_a_parabola_has_its_mean_and_its_bend() -> None:
    """E x^2 = 1 and E (x^2)'' = 2, which is E (xi^2 - 1) s for the step."""
    step = matched_step(lambda x: x**2, mean=0.0, tau=1.0, step_tau=1.0)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = step["thresholds"]
    assert low == pytest.approx(-high)
    inside = high * weights @ np.exp(-((high * nodes) ** 2) / 2) / (2 * np.pi) ** 0.5
    inner, outer = step["heights"][1], step["heights"][0]
    assert inside * inner + (1 - inside) * outer == pytest.approx(1)
    density = np.exp(-(high**2) / 2) / (2 * np.pi) ** 0.5
    assert 2 * (outer - inner) * high * density == pytest.approx(2)


def test_a_cell_that_is_too_narrow_is_no_step() -> None:
    with pytest.raises(NoMatchError):
        matched_step(lambda x: x + 1e-8 * x**2, mean=0.0, tau=1.0, step_tau=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pdb", "sparsity": 0.5}, "sparsity=0.5 means nothing to method='pdb'"),
        ({"method": "pdb", "weights": "random"}, "weights='random' means nothing"),
        ({"method": "pdb", "activation": "keep"}, "activation='keep' means nothing"),
        ({"noise": "drop"}, "noise='drop' means nothing to method='ntk'"),
        ({"noise": "drop", "noise_removal": {"head": 0.5}}, "means nothing to method='ntk'"),
        ({"max_rank": 3}, "max_rank=3 means nothing"),
        ({"sparsity": 1.0}, "must lie in"),
        ({"sparsity": -0.1}, r"must lie in \[0, 1\)"),
        ({"weights": "other"}, "weights must be one of trained, random"),
        ({"activation": "other"}, "activation must be one of auto, matched, keep"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressionSettings(**{"method": "ntk", **changes})


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.bfloat16, 16)])
@pytest.mark.parametrize("random", [False, True])
def test_codes_are_whole_bytes_and_scales_as_wide_as_the_weight(
    dtype: torch.dtype, bits: int, random: bool
) -> None:
    weight = torch.randn(3, 31).to(dtype)
    result = ternarize_weight("head", weight, SETTINGS, random=random)
    assert made(result).scale.dtype == dtype
    assert result.plan.bits == 8 * 19 + 3 * bits


def test_random_weights_have_the_sparsity_that_is_asked_for() -> None:
    weight, settings = torch.randn(200, 100) * 0.3, CompressionSettings(method="ntk", sparsity=0.8)
    dense = made(ternarize_weight("a", weight, settings, random=True)).dense()
    assert float((dense == 0).float().mean()) == pytest.approx(0.8, abs=0.02)
    # relative fluctuation of the mean square over 20,000 entries: sqrt(4 / 20,000) = 0.014
    assert float(dense.square().mean() / weight.square().mean()) == pytest.approx(1, abs=0.06)


def test_a_refit_without_a_bias_has_the_means_of_the_outputs_to_fit_too() -> None:
    x, weight = samples()
    y = x @ weight.T + 5
    seen, errors = sums(x.double(), y.double()), []
    for bias in (None, torch.zeros(3)):
        result = refit_weight("head", weight, bias, SETTINGS, seen)
        assert (result.bias_shift is None) == (bias is None)
        errors.append(float((x @ made(result).dense().T - y).square().mean()))
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(("weights", "near"), [("trained", True), ("random", False)])
def test_where_samples_are_few_a_refit_stays_near_what_the_head_has_learnt(
    weights: str, near: bool
) -> None:
    x, weight = samples(count=4)
    y = x @ torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).T
    settings, seen = (
        CompressionSettings(method="ntk", weights=weights),
        sums(x.double(), y.double()),
    )
    dense = made(refit_weight("head", weight, torch.zeros(3), settings, seen)).dense()
    cosine = float((dense * weight).sum() / dense.norm() / weight.norm())
    assert (cosine > 0.5) == near


def test_entries_of_a_refit_are_chosen_for_the_outputs() -> None:
    x, weight = samples()
    y, bias = x @ weight.T, torch.zeros(3)
    seen = sums(x.double(), y.double())
    fitted = seen.solve(weight, bias=True)[0].float()
    layers = (
        made(refit_weight("head", weight, bias, SETTINGS, seen)),
        made(ternarize_weight("head", fitted, SETTINGS)),
    )
    errors = [float((x @ layer.dense().T - y).var(dim=0).sum()) for layer in layers]
    assert errors[0] < 0.75 * errors[1]


def test_a_last_layer_of_zeros_stays_dense() -> None:
    x, zero = samples()[0].double(), torch.zeros(3, 30)
    result = refit_weight("head", zero, torch.zeros(3), SETTINGS, sums(x, x @ zero.double().T))
    assert (made(result), result.plan.reason) == (None, "all weights are zero")


def test_an_odd_activation_keeps_its_slope_at_the_width_of_the_ternary_model() -> None:
    step = matched_step(np.tanh, mean=0.3, tau=0.4, step_tau=1.2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    size, step_size = 0.5, (1.2**2 + 0.3**2) ** 0.5
    slope = (weights * nodes * np.tanh(size * nodes)).sum() / weights.sum() / size
    low, high = step["heights"]
    assert (high - low) / ((2 * np.pi) ** 0.5 * step_size) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_steps_for_a_homogeneous_activation_scale_with_it(scale: float) -> None:
    one, other = (
        matched_step(lambda x: np.maximum(x, 0), mean=size / 4, tau=size, step_tau=size)
        for size in (1.0, scale)
    )
    for key in ("thresholds", "heights"):
        assert other[key] == pytest.approx([scale * value for value in one[key]], rel=1e-6)
