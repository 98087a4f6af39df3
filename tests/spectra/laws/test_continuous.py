"""The curve against the closed roots of one and two variances, which must be the same law."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur
from hf_rmt.spectra.laws.continuous import ContinuousBulk
from hf_rmt.spectra.laws.spike_map import Array


@dataclass(frozen=True)
class Listed(ContinuousBulk):
    """A population given by its atoms."""

    atoms_: tuple[float, ...]
    weights_: tuple[float, ...]
    aspect_ratio: float

    @property
    def atoms(self) -> Array:
        return np.array(self.atoms_)

    @property
    def weights(self) -> Array:
        return np.array(self.weights_)

    def rescaled(self, factor, *, aspect_ratio=None):
        atoms = tuple(factor * atom for atom in self.atoms_)
        return replace(self, atoms_=atoms, aspect_ratio=aspect_ratio or self.aspect_ratio)


def pairs():
    for c in (0.1, 0.5, 1.0):
        yield Listed((2.0,), (1.0,), c), MarchenkoPastur(2.0, c)
    for c in (0.3, 0.7):
        yield Listed((1.0, 2.0), (0.7, 0.3), c), DoubleBulk(0.3, (2.0, 1.0), c)
    yield Listed((1e-9, 3e-9), (0.5, 0.5), 0.5), DoubleBulk(0.5, (3e-9, 1e-9), 0.5)
    yield Listed((1.0, 4.0), (0.6, 0.4), 1.0), DoubleBulk(0.4, (4.0, 1.0), 1.0)


PAIRS = list(pairs())


@pytest.mark.parametrize(("law", "exact"), PAIRS, ids=lambda law: str(law))
def test_the_edges_are_those_of_the_closed_form(law, exact):
    assert len(exact.bulk_edges) == 1
    np.testing.assert_allclose(
        law.bulk_edges, exact.bulk_edges, rtol=1e-8, atol=1e-9 * exact.upper_edge
    )


@pytest.mark.parametrize(("law", "exact"), PAIRS, ids=lambda law: str(law))
def test_density_distribution_and_quantiles_are_those_of_the_closed_form(law, exact):
    x = np.linspace(*exact.bulk_edges[0], 203)[1:-1]
    np.testing.assert_allclose(law.pdf(x) / exact.pdf(x), 1, rtol=1e-5)
    np.testing.assert_allclose(law.cdf(x), exact.cdf(x), atol=1e-6)
    q = np.linspace(0.01, 0.99, 30)
    np.testing.assert_allclose(law.quantile(q), exact.quantile(q), rtol=1e-4)
    outside = np.array([1.1, 5.0]) * law.upper_edge
    assert (law.pdf(outside) == 0).all()
    assert law.cdf(outside) == pytest.approx(1)


@pytest.mark.parametrize(("law", "exact"), PAIRS, ids=lambda law: str(law))
def test_the_transform_is_that_of_the_closed_form(law, exact):
    scale = law.upper_edge
    z = scale * (np.linspace(-1, 3, 21)[:, None] + 1j * np.array([0.003, 0.1, 2.0, 100.0]))
    np.testing.assert_allclose(law.stieltjes_transform(z), exact.stieltjes_transform(z), rtol=1e-7)


@pytest.mark.parametrize(("law", "exact"), PAIRS, ids=lambda law: str(law))
def test_spikes_are_inverted_above_the_bulk_alone(law, exact):
    values = law.upper_edge * np.array([1.0001, 1.1, 3.0, 1e6])
    np.testing.assert_allclose(law.spike_inverse(values), exact.spike_inverse(values), rtol=1e-6)
    assert np.isnan(law.spike_inverse(law.upper_edge * np.array([0.5, 0.0, -1.0]))).all()
    assert law.spike_inverse(3 * law.upper_edge).shape == ()
