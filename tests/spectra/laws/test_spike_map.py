from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra.laws.spike_map import (
    critical_points,
    population_moment,
    spike_roots,
    upper_root,
)

POPULATIONS = [
    (np.array([1.7]), np.array([1.0]), 0.25),
    (np.array([1.0]), np.array([1.0]), 1.0),
    (np.array([1.0, 3.0]), np.array([0.6, 0.4]), 0.5),
    (np.array([1e-6, 3e-3]), np.array([0.05, 0.95]), 1.0),
    (np.array([2e8, 2e8 * (1 + 1e-7)]), np.array([0.5, 0.5]), 0.25),
]


def spike_map(a, atoms, weights, aspect_ratio):
    return a * (
        1 + aspect_ratio * sum(w * t / (a - t) for t, w in zip(atoms, weights, strict=True))
    )


@pytest.mark.parametrize("population", POPULATIONS)
def test_the_roots_solve_the_equation(population):
    atoms = population[0]
    z = atoms[-1] * (np.linspace(0.01, 30, 40) + 0.3j)
    roots = spike_roots(z, *population)
    assert roots.shape == (40, len(atoms) + 1)
    np.testing.assert_array_equal((roots.imag > 1e-9 * atoms[-1]).sum(-1), 1)
    a = upper_root(z, *population)
    np.testing.assert_array_equal(a, roots[roots.imag > 1e-9 * atoms[-1]])
    np.testing.assert_allclose(spike_map(a, *population), z, rtol=1e-11)


def test_the_roots_are_those_of_the_polynomial():
    atoms, weights, c = np.array([1.0, 3.0]), np.array([0.6, 0.4]), 0.5
    for z in (0.2 + 0.1j, 2.0, 40.0):
        g = np.poly(atoms) * 1.0
        pull = c * (weights[0] * atoms[0] * np.poly([3.0]) + weights[1] * atoms[1] * np.poly([1.0]))
        polynomial = np.polyadd(np.polymul([1, 0], np.polyadd(g, pull)), -z * g)
        np.testing.assert_allclose(
            np.sort_complex(spike_roots(z, atoms, weights, c)),
            np.sort_complex(np.roots(polynomial)),
            rtol=1e-10,
        )


def test_small_roots_keep_their_relative_accuracy():
    """With atoms 1e-6 apart in scale the small root is lost to rounding unless polished."""
    atoms, weights, c = np.array([1e-6, 1.0]), np.array([0.5, 0.5]), 0.5
    z = 1e-6 * (0.5 + 1.0j)
    root = upper_root(z, atoms, weights, c)
    assert spike_map(root, atoms, weights, c) == pytest.approx(z, rel=1e-8)


def test_cardano_where_its_two_cube_roots_part():
    """At b^2 = 3 c one of the two is 0, and taking it loses all three roots."""
    atoms, weights, c = np.array([1.0, 3.0]), np.array([0.6, 0.4]), 0.5
    shift = c * weights @ atoms - atoms.sum()
    product = 3 * atoms.prod() * (1 - c)
    for z in np.roots([1.0, -2 * shift - 3 * atoms.sum(), shift**2 - product]):
        roots = spike_roots(z, atoms, weights, c)
        np.testing.assert_allclose(spike_map(roots, atoms, weights, c), z, rtol=1e-10)


@pytest.mark.parametrize("population", POPULATIONS[:4])
def test_the_slope_vanishes_at_critical_points(population):
    atoms, weights, c = population
    points = critical_points(*population)
    assert len(points) in (2, 4)
    assert np.all(np.diff(points) > 0)
    terms = weights * (atoms / (points[:, None] - atoms)) ** 2
    np.testing.assert_allclose(c * terms.sum(1), 1.0, rtol=1e-6)


def test_moments_are_the_stated_polynomials():
    atoms, weights, c = np.array([0.5, 2.0, 9.0]), np.array([0.5, 0.3, 0.2]), 0.3
    h1, h2, h3 = (float(weights @ atoms**k) for k in (1, 2, 3))
    assert population_moment(atoms, weights, c, 0) == 1.0
    assert population_moment(atoms, weights, c, 1) == pytest.approx(h1)
    assert population_moment(atoms, weights, c, 2) == pytest.approx(h2 + c * h1**2)
    third = h3 + 3 * c * h1 * h2 + c**2 * h1**3
    assert population_moment(atoms, weights, c, 3) == pytest.approx(third)


def test_a_negative_order_is_refused():
    with pytest.raises(ValueError, match="order of a moment must be at least 0, got -1"):
        population_moment([1.0], [1.0], 0.5, -1)


@pytest.mark.parametrize("c", [1e-6, 1e-4, 0.004, 0.1, 1.0])
@pytest.mark.parametrize("apart", [1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.01, 0.1, 1, 5, 100])
@pytest.mark.parametrize("mixing", [0.05, 0.3, 0.9])
def test_the_spectrum_parts_where_the_map_rises_between_two_atoms(c, apart, mixing):
    """The double root between nearly equal atoms once passed for a gap, with edges upside down."""
    atoms, weights = np.array([1.0, 1.0 + apart]), np.array([1 - mixing, mixing])
    share = np.linspace(0, 1, 20_001)[1:-1, None]
    slope = 1 - c * (weights * (atoms / (apart * (share - [0, 1]))) ** 2).sum(1)
    points = critical_points(atoms, weights, c)
    assert len(points) == (4 if np.any(slope > 0) else 2)
    assert np.all(np.diff(spike_map(points, atoms, weights, c)) > 0)
