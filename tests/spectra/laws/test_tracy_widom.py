from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from hf_rmt.spectra import tracy_widom_cdf, tracy_widom_quantile


def test_mean_and_variance_are_the_published_ones():
    """Bornemann, Math. Comp. 79 (2010): -1.2065335745820, 1.607781034581."""
    tail = quad(lambda x: 1 - tracy_widom_cdf(x), 0, 12, epsabs=1e-11)[0]
    head = quad(tracy_widom_cdf, -12, 0, epsabs=1e-11)[0]
    assert tail - head == pytest.approx(-1.2065335745820, abs=1e-9)
    second = 2 * quad(lambda x: x * (1 - tracy_widom_cdf(x)), 0, 12, epsabs=1e-11)[0]
    second -= 2 * quad(lambda x: x * tracy_widom_cdf(x), -12, 0, epsabs=1e-11)[0]
    assert second - (tail - head) ** 2 == pytest.approx(1.607781034581, abs=1e-8)


@pytest.mark.parametrize(
    ("probability", "quantile"), [(0.9, 0.4501), (0.95, 0.9793), (0.99, 2.0234)]
)
def test_quantiles_are_the_tabulated_ones(probability, quantile):
    assert tracy_widom_quantile(probability) == pytest.approx(quantile, abs=2e-4)


def test_quantile_inverts_the_cdf():
    for probability in (1e-6, 0.01, 0.5, 0.999, 1 - 1e-6):
        assert tracy_widom_cdf(tracy_widom_quantile(probability)) == pytest.approx(
            probability, abs=1e-10
        )


@pytest.mark.parametrize("probability", [0.0, 1.0, -1.0, 1e-7, float("nan")])
def test_a_probability_out_of_range_is_refused(probability):
    with pytest.raises(ValueError, match="probability must lie"):
        tracy_widom_quantile(probability)


def test_the_largest_eigenvalue_of_noise_follows_it():
    """400 draws: the mean of 400 variables of standard deviation 1.27 is known to 0.064."""
    generator = np.random.default_rng(0)
    rows, columns = 200, 100
    centre = (np.sqrt(rows) + np.sqrt(columns)) ** 2
    scale = (np.sqrt(rows) + np.sqrt(columns)) * (rows**-0.5 + columns**-0.5) ** (1 / 3)
    largest = [
        np.linalg.norm(generator.standard_normal((rows, columns)), 2) ** 2 for _ in range(400)
    ]
    sample = (np.array(largest) - centre) / scale
    assert np.mean(sample) == pytest.approx(-1.2065, abs=0.2)
    assert np.mean(sample <= tracy_widom_quantile(0.9)) == pytest.approx(0.9, abs=0.05)


def test_a_probability_lies_between_0_and_1():
    assert all(0 <= tracy_widom_cdf(x) <= 1 for x in (-60.0, -40.0, -20.0, 20.0, 60.0))
