"""The edge (largest eigenvalue) of noise whose rows have unequal variances.

The noise is a matrix X with N rows and p columns, and its eigenvalues are those of X'X (' is the
transpose). In the separable covariance model, X_ij = sqrt(d_i tau_j / N) Z_ij, where Z has
independent entries of variance 1. The column variances tau are those of a fitted law (predicted
distribution) of noise eigenvalues. The row energies d are measured: they are the sums of squares of
the rows, divided by their mean. For each number z beyond the edge, two real numbers u and v solve

    z u = c E[tau / (1 - tau v)],    z v = E[d / (1 - d u)],

where c = p / N and E is the mean over tau or d. For each u there is one v, and so one z. The edge
is the least value of this function z(u). If all d are 1, this is the edge of the fitted law.

Source: Couillet & Hachem, Random Matrices: Theory Appl. 3 (2014), section 3.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from hf_rmt.spectra.laws.law import BulkLaw
from hf_rmt.spectra.laws.spike_map import Array

GRID = 48
"""Number of values of u that are tried; the module's docstring defines u. The function z(u) is flat
near its minimum, so the edge is exact to about 0.5 %."""
FINE_GRID = 480
NEAREST_POLE = 1e-4
"""The values of u keep this distance from 0 and from 1 / max(d), where E[d / (1 - d u)] is
infinite. The distance is given as a share of 1 / max(d). If a few rows are outliers, the minimum of
z(u) is near 1 / max(d). If a few columns are large, the minimum is near 0. Symbols are as in the
module's docstring."""


def profile_edges(law: BulkLaw, energies: Array) -> Array:
    """The edges (largest eigenvalues by theory) of noise, one for each set of row energies.

    The noise is a matrix with N rows. The energy of a row is the sum of its squared entries,
    divided by the mean of these sums; see the module `row_profile`.

    Args:
        law: The law (distribution) of the noise eigenvalues if all rows had one variance.
        energies: Energies of the N rows, nonnegative, mean near 1, shape (sets, N).

    Returns:
        The edges, shape (sets,).

    Examples:
        >>> from hf_rmt.spectra import MarchenkoPastur
        >>> law = MarchenkoPastur(variance=1.0, aspect_ratio=0.25)
        >>> bool(abs(profile_edges(law, np.ones((1, 100)))[0] / 2.25 - 1) < 0.01)
        True
    """
    fractions = expit(np.linspace(-1, 1, GRID) * logit(1 - NEAREST_POLE))
    peaks = energies.max(axis=1)
    relative = energies / peaks[:, None]
    pull = np.stack([(relative / (1 - q * relative)).mean(1) for q in fractions], axis=1)
    product = fractions * pull  # u E[d / (1 - d u)] = z u v
    v = _column_solution(law, product)
    return np.min(pull * peaks[:, None] / v, axis=1)


def _column_solution(law: BulkLaw, product: Array) -> Array:
    """The v between 0 and 1 / max(tau) that solves c v E[tau / (1 - tau v)] = product.

    This is the first equation of the module `row_profile`, times v. There, c is the number of
    columns of the noise divided by its number of rows, tau are the variances of its columns, and E
    is the mean over them. The result has one v for each entry of `product`, which is z u v.
    """
    peak = law.atoms[-1]
    fractions = 1 - np.geomspace(1 - 1e-9, 1e-9, FINE_GRID)
    relative = law.atoms / peak
    pull = (law.weights * relative / (1 - fractions[:, None] * relative)).sum(1)
    known = np.log(law.aspect_ratio * fractions * pull)
    return np.exp(np.interp(np.log(product), known, np.log(fractions))) / peak
