from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from hf_rmt.spectra import MarchenkoPastur


def density(x, variance, c):
    """The textbook formula."""
    low, high = variance * (1 - np.sqrt(c)) ** 2, variance * (1 + np.sqrt(c)) ** 2
    inside = np.maximum((high - x) * (x - low), 0.0)
    return np.sqrt(inside) / (2 * np.pi * c * variance * x)


@pytest.mark.parametrize("variance", [1e-8, 1.0, 40.0])
@pytest.mark.parametrize("c", [0.05, 0.5, 1.0])
def test_edges_density_and_cdf_are_the_closed_forms(variance, c):
    law = MarchenkoPastur(variance=variance, aspect_ratio=c)
    low, high = variance * (1 - np.sqrt(c)) ** 2, variance * (1 + np.sqrt(c)) ** 2
    np.testing.assert_allclose(law.bulk_edges, [[low, high]], atol=1e-14 * variance)
    x = low + (high - low) * np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(law.pdf(x), density(x, variance, c), rtol=1e-9)
    for point in x[::10]:
        # over sqrt(x) the density at 0 is finite
        mass = quad(
            lambda y: 2 * y * density(y**2, variance, c),
            np.sqrt(low),
            np.sqrt(point),
            epsabs=1e-12,
        )[0]
        assert law.cdf(point) == pytest.approx(mass, abs=1e-8)


def test_the_density_of_a_square_matrix_is_infinite_at_zero():
    law = MarchenkoPastur(variance=1.0, aspect_ratio=1.0)
    np.testing.assert_array_equal(law.pdf([0.0, -1.0, 5.0]), [np.inf, 0.0, 0.0])
    assert MarchenkoPastur(variance=1.0, aspect_ratio=0.5).pdf(0.0) == 0.0


def test_first_moments():
    law = MarchenkoPastur(variance=3.0, aspect_ratio=0.4)
    assert law.moment(1) == pytest.approx(3.0)
    assert law.moment(2) == pytest.approx(9.0 * 1.4)


def test_a_spike_is_recovered_by_the_quadratic_formula():
    law = MarchenkoPastur(variance=2.0, aspect_ratio=0.25)
    eigenvalue = 9.0
    b = eigenvalue + 2.0 - 0.25 * 2.0
    alpha = (b + np.sqrt(b**2 - 4 * eigenvalue * 2.0)) / 2
    assert law.spike_inverse(eigenvalue) == pytest.approx(alpha)
    assert law.critical_points == pytest.approx([2 * (1 - 0.5), 2 * (1 + 0.5)])


@pytest.mark.parametrize("variance", [0.0, -1.0, np.inf, np.nan])
def test_a_variance_must_be_positive(variance):
    with pytest.raises(ValueError, match="variance must be positive and finite"):
        MarchenkoPastur(variance=variance, aspect_ratio=0.5)


@pytest.mark.parametrize("aspect_ratio", [0.0, 1.5, -0.2, np.nan])
def test_an_aspect_ratio_must_lie_in_its_range(aspect_ratio):
    with pytest.raises(ValueError, match=r"aspect_ratio must lie in \(0, 1\].*pass the transpose"):
        MarchenkoPastur(variance=1.0, aspect_ratio=aspect_ratio)
