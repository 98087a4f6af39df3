from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur


@pytest.mark.parametrize(
    ("mixing", "variances"), [(0.3, (2.0, 2.0)), (1.0, (2.0, 0.5)), (0.0, (7.0, 2.0))]
)
def test_one_variance_is_the_unit_bulk(mixing, variances):
    law = DoubleBulk(mixing=mixing, variances=variances, aspect_ratio=0.5)
    unit = MarchenkoPastur(variance=2.0, aspect_ratio=0.5)
    x = np.linspace(0.1, 7, 30)
    np.testing.assert_allclose(law.bulk_edges, unit.bulk_edges)
    np.testing.assert_allclose(law.pdf(x), unit.pdf(x))
    np.testing.assert_allclose(law.cdf(x), unit.cdf(x))
    np.testing.assert_allclose(law.spike_inverse(x + 7), unit.spike_inverse(x + 7))
    assert law.moment(3) == pytest.approx(unit.moment(3))


def test_nearly_equal_variances_are_nearly_the_unit_bulk():
    law = DoubleBulk(mixing=0.5, variances=(1 + 1e-9, 1 - 1e-9), aspect_ratio=0.25)
    unit = MarchenkoPastur(variance=1.0, aspect_ratio=0.25)
    x = np.linspace(0.26, 2.2, 30)
    np.testing.assert_allclose(law.bulk_edges, unit.bulk_edges, rtol=1e-6)
    np.testing.assert_allclose(law.pdf(x), unit.pdf(x), rtol=1e-6)


def test_scaling_the_variances_scales_the_law():
    law = DoubleBulk(mixing=0.4, variances=(3.0, 1.0), aspect_ratio=0.5)
    scaled = DoubleBulk(mixing=0.4, variances=(3e-12, 1e-12), aspect_ratio=0.5)
    x = np.linspace(0.1, 9, 20)
    np.testing.assert_allclose(scaled.bulk_edges, 1e-12 * law.bulk_edges)
    np.testing.assert_allclose(scaled.pdf(1e-12 * x), 1e12 * law.pdf(x))
    fluctuation = law.edge_fluctuation(law.critical_points[-1], 100)
    assert scaled.edge_fluctuation(scaled.critical_points[-1], 100) == pytest.approx(
        1e-12 * fluctuation
    )


def test_the_gap_opens_as_the_variances_part():
    intervals = [
        len(DoubleBulk(mixing=0.5, variances=(v, 1.0), aspect_ratio=0.25).bulk_edges)
        for v in (1.5, 2.5, 30.0)
    ]
    assert intervals == [1, 1, 2]


def test_the_mass_of_the_upper_interval_is_the_mixing():
    law = DoubleBulk(mixing=0.2, variances=(30.0, 1.0), aspect_ratio=0.25)
    assert 1 - law.cdf(law.bulk_edges[0, 1]) == pytest.approx(0.2, abs=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixing": 1.5}, r"mixing must lie in \[0, 1\], got 1.5"),
        ({"mixing": np.nan}, "mixing must lie"),
        ({"variances": (1.0, 2.0)}, "descending order.*swap them and use mixing 0.6"),
        ({"variances": (1.0, 0.0)}, "variances must be positive"),
        ({"aspect_ratio": 2.0}, "pass the transpose"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    good = {"mixing": 0.4, "variances": (3.0, 1.0), "aspect_ratio": 0.5}
    with pytest.raises(ValueError, match=message):
        DoubleBulk(**(good | arguments))


@pytest.mark.parametrize("value", [1e19, 1e21, 1e55, 1e100, 1e300])
def test_a_spike_far_away_has_an_inverse(value):
    """g(a) = a + c E[tau] + O(1 / a), so beyond 1e18 both sides are one float64 number."""
    assert DoubleBulk(0.4, (3.0, 1.0), 0.5).spike_inverse(value) == pytest.approx(value, rel=1e-12)
