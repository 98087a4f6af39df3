from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur
from hf_rmt.spectra.ensembles import double_bulk_matrix, eigenvalues_of
from hf_rmt.spectra.row_profile import profile_edges

LAWS = [
    MarchenkoPastur(2.0, 0.3),
    MarchenkoPastur(1e-6, 1.0),
    DoubleBulk(0.4, (5.0, 1.0), 0.5),
    DoubleBulk(0.1, (30.0, 1.0), 0.05),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_even_rows_give_the_edge_of_the_law(law):
    edges = profile_edges(law, np.ones((2, 50)))
    assert edges == pytest.approx([law.upper_edge] * 2, rel=0.01)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_all_rows_larger_scale_the_edge(law):
    assert profile_edges(law, np.full((1, 50), 7.0))[0] == pytest.approx(
        7 * law.upper_edge, rel=0.01
    )


@pytest.mark.parametrize(("share", "factor"), [(0.5, 9.0), (0.1, 9.0), (0.3, 4.0)])
def test_unequal_rows_move_the_edge_to_where_matrices_have_it(share, factor):
    """The largest of 600 eigenvalues lies below the edge by 1 to 2 % (N^{-2/3} = 0.009)."""
    shape = (900, 600)
    energies = np.where(np.arange(900) < share * 900, factor, 1.0)
    law = DoubleBulk(0.3, (3.0, 1.0), 600 / 900)
    largest = []
    for seed in range(3):
        weight = double_bulk_matrix(shape, mixing=0.3, variances=(3.0, 1.0), seed=seed)
        largest.append(eigenvalues_of(weight * np.sqrt(energies)[:, None])[0])
    edge = profile_edges(law, energies[None])[0]
    assert np.mean(largest) == pytest.approx(edge, rel=0.03)
    assert edge > 1.1 * law.rescaled(energies.mean()).upper_edge


def test_one_large_row_is_an_outlier_of_its_own():
    """By the spike map of the transpose: an eigenvalue near d_1 times the row's mean energy."""
    energies = np.ones((1, 400))
    energies[0, 0] = 40.0
    weight = np.random.default_rng(0).standard_normal((400, 200)) * np.sqrt(energies.T / 400)
    edge = profile_edges(MarchenkoPastur(1.0, 0.5), energies)[0]
    assert eigenvalues_of(weight)[0] == pytest.approx(edge, rel=0.2)
