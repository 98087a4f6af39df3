"""The laws: identities that hold for any of them, and closed forms and simulations for some."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur
from hf_rmt.spectra.ensembles import double_bulk_matrix, eigenvalues_of

LAWS = [
    MarchenkoPastur(variance=2.0, aspect_ratio=0.25),
    MarchenkoPastur(variance=1e-9, aspect_ratio=1.0),
    DoubleBulk(mixing=0.4, variances=(3.0, 1.0), aspect_ratio=0.5),
    DoubleBulk(mixing=0.3, variances=(5.0, 0.2), aspect_ratio=1.0),
    DoubleBulk(mixing=0.5, variances=(9.0, 1.0), aspect_ratio=0.1),
    DoubleBulk(mixing=0.1, variances=(2e7, 1e6), aspect_ratio=0.25),
    DoubleBulk(mixing=0.6, variances=(1.0, 1e-3), aspect_ratio=0.9),
]
DIVIDED = LAWS[4]


@pytest.fixture(params=LAWS, ids=str)
def law(request):
    return request.param


def integral(law, power):
    """Of x^power f(x), over sqrt(x) and an angle, where the integrand is smooth."""
    total = 0.0
    for lower, upper in np.sqrt(law.bulk_edges):
        middle, half = (lower + upper) / 2, (upper - lower) / 2

        def slope(angle, middle=middle, half=half):
            y = middle - half * np.cos(angle)
            return float(law.pdf(y**2)) * 2 * y ** (2 * power + 1) * half * np.sin(angle)

        total += quad(slope, 0, np.pi, limit=400, epsabs=0, epsrel=1e-9)[0]
    return total


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_moments_agree_with_quadrature(law, order):
    assert integral(law, order) == pytest.approx(law.moment(order), rel=1e-6)


def test_the_transform_solves_its_equation(law):
    z = law.upper_edge * np.array([0.3 + 0.01j, 0.9 + 1j, -0.5 + 0.2j, 4.0 + 1e-6j])
    s = law.stieltjes_transform(z, companion=True)
    pull = sum(w * t / (1 + t * s) for t, w in zip(law.atoms, law.weights, strict=True))
    np.testing.assert_allclose(-1 / s + law.aspect_ratio * pull, z, rtol=1e-9)
    assert np.all(s.imag > 0)


def test_the_transform_is_that_of_the_density(law):
    z = complex(0.5 * law.upper_edge, 0.4 * law.upper_edge)
    nodes = law.quantile((np.arange(20000) + 0.5) / 20000)
    assert law.stieltjes_transform(z) == pytest.approx(np.mean(1 / (nodes - z)), rel=1e-5)
    c = law.aspect_ratio
    companion = c * law.stieltjes_transform(z) - (1 - c) / z
    assert law.stieltjes_transform(z, companion=True) == pytest.approx(companion)


def test_the_transform_needs_the_upper_half_plane(law):
    with pytest.raises(ValueError, match="positive imaginary part"):
        law.stieltjes_transform([1j, 1.0])


def test_the_cdf_rises_from_zero_to_one(law):
    x = np.linspace(-0.1, 1.2, 700) * law.upper_edge
    masses = law.cdf(x)
    assert masses[0] == 0.0
    assert masses[-1] == pytest.approx(1.0, abs=1e-12)
    assert np.all(np.diff(masses) >= -1e-12)
    assert law.cdf(law.upper_edge) == pytest.approx(1.0)


def test_the_quantile_inverts_the_cdf(law):
    q = np.linspace(1e-4, 1 - 1e-4, 101)
    np.testing.assert_allclose(law.cdf(law.quantile(q)), q, atol=1e-9)
    edges = law.bulk_edges
    np.testing.assert_allclose(law.quantile([0.0, 1.0]), [edges[0, 0], edges[-1, 1]], rtol=1e-6)
    assert law.quantile(0.3).shape == ()


@pytest.mark.parametrize("level", [-0.1, 1.1, np.nan])
def test_a_level_out_of_range_is_refused(law, level):
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        law.quantile([0.5, level])


def test_edges_are_where_the_density_begins(law):
    assert (law.bulk_edges[0, 0] == 0.0) == (law.aspect_ratio == 1.0)
    for lower, upper in law.bulk_edges:
        width = 1e-6 * (upper - lower)
        assert law.pdf(upper - width) > 0
        assert law.pdf(upper + width) == 0
        assert law.pdf(lower + width) > 0
        assert lower == 0 or law.pdf(lower - width) == 0
    assert law.upper_edge == law.bulk_edges[-1, 1]


def test_the_spike_map_and_its_inverse(law):
    alpha = law.critical_points[-1] * np.array([1.01, 1.5, 4.0, 1e3, 1e8])
    sample = law.spike_forward(alpha)
    assert np.all(sample > law.upper_edge)
    np.testing.assert_allclose(law.spike_inverse(sample), alpha, rtol=1e-7)
    assert np.all(law.spike_slope(alpha) > 0)
    step = 1e-5 * alpha[1]
    around = alpha[1] + step * np.array([-1, 0, 1])
    values = law.spike_forward(around)
    slope = (values[2] - values[0]) / (2 * step)
    assert law.spike_slope(alpha[1]) == pytest.approx(slope, rel=1e-5)
    rise = (law.spike_slope(around[2]) - law.spike_slope(around[0])) / (2 * step)
    assert law.spike_curvature(alpha[1]) == pytest.approx(rise, rel=1e-4)


def test_an_eigenvalue_inside_the_bulk_or_below_has_no_spike(law):
    lower, upper = law.bulk_edges[0]
    assert np.all(np.isnan(law.spike_inverse([(lower + upper) / 2, -upper])))
    assert lower == 0 or np.isnan(law.spike_inverse(lower / 2))


def test_an_eigenvalue_in_the_gap_has_a_spike_between_the_variances():
    edges = DIVIDED.bulk_edges
    assert edges.shape == (2, 2)
    gap = edges[0, 1] + (edges[1, 0] - edges[0, 1]) * np.array([0.2, 0.5, 0.8])
    alpha = DIVIDED.spike_inverse(gap)
    assert np.all((alpha > 1.0) & (alpha < 9.0))
    assert np.all(DIVIDED.spike_slope(alpha) > 0)
    np.testing.assert_allclose(DIVIDED.spike_forward(alpha), gap, rtol=1e-9)
    assert not DIVIDED.contains(gap).any()
    assert DIVIDED.cdf(gap[1]) == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0])
def test_the_fluctuation_of_a_unit_bulk_is_bemas(c):
    law, rows = MarchenkoPastur(variance=3.0, aspect_ratio=c), 700
    bema = 3.0 * (1 + np.sqrt(c)) ** (4 / 3) * c ** (-1 / 6) * rows ** (-2 / 3)
    assert law.edge_fluctuation(law.critical_points[-1], rows) == pytest.approx(bema)


def test_the_largest_eigenvalue_of_a_double_bulk_fluctuates_as_stated():
    """150 draws: the mean of the standardised edge is -1.21, known to 0.10, up to O(N^{-1/3})."""
    shape = (300, 150)
    law = DoubleBulk(mixing=0.4, variances=(3.0, 1.0), aspect_ratio=0.5)
    generator = np.random.default_rng(1)
    largest = [
        eigenvalues_of(double_bulk_matrix(shape, mixing=0.4, variances=(3, 1), seed=generator))[0]
        for _ in range(150)
    ]
    scale = law.edge_fluctuation(law.critical_points[-1], shape[0])
    standardised = (np.array(largest) - law.upper_edge) / scale
    assert standardised.mean() == pytest.approx(-1.21, abs=0.35)
    assert standardised.std() == pytest.approx(1.27, abs=0.25)


@pytest.mark.parametrize("law", [LAWS[2], LAWS[3], LAWS[4]], ids=str)
def test_a_large_simulated_matrix_follows_the_law(law):
    """Eigenvalues are rigid: the distance of their distribution is of order log(p) / p = 0.009."""
    shape = (round(700 / law.aspect_ratio), 700)
    weight = double_bulk_matrix(shape, mixing=law.mixing, variances=law.variances, seed=3)
    sample = eigenvalues_of(weight)[::-1]
    assert np.abs(law.cdf(sample) - (np.arange(700) + 0.5) / 700).max() < 0.009
