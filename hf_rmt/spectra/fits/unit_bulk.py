"""Fits noise of one variance to a weight's eigenvalues, by BEMA or by a kernel density.

This model of noise is called the population unit bulk (PUB). BEMA is bulk eigenvalue matching
analysis. Both methods are used as published, for comparison. A law is the density that theory
predicts for noise eigenvalues. It is fitted to the whole matrix of N rows and p columns, without
removing the spikes (signal eigenvalues). So the law has the aspect ratio p / N.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from hf_rmt.checks import check_number
from hf_rmt.spectra.fits.double_bulk import fitted
from hf_rmt.spectra.laws.marchenko_pastur import MarchenkoPastur
from hf_rmt.spectra.laws.spike_map import Array
from hf_rmt.spectra.laws.tracy_widom import tracy_widom_quantile
from hf_rmt.spectra.split import SpectrumFit, verdict

ESTIMATORS = ("bema", "kernel")
BEMA_BULK = (0.2, 0.8)
"""BEMA uses the eigenvalues whose rank (1 for the largest), divided by the number of eigenvalues,
lies in this range."""
BEMA_BETA = 0.1
"""Probability that the largest noise eigenvalue lies above the limit of BEMA for noise."""
BETAS = ("[0.000001", "0.999999]")
"""Range of `beta` in `fit_unit_bulk`; outside of this range `tracy_widom_quantile` is not
precise."""
KERNEL_WINDOW = 15
"""`kernel_density` smooths each singular value by a Gaussian. The width of the Gaussian is half the
distance between the singular values this many places before and after in sorted order."""
SCALES = (1 / 3, 3.0)
"""The kernel estimator searches sigma, where sigma^2 is the variance of the noise, in this range.
The unit is the sigma that the median eigenvalue gives."""
GRID_POINTS = 2000
"""Number of points at which densities of singular values are compared, from 0 to the upper end of
the law with the largest sigma of `SCALES`."""
COARSE_STEPS = 60
MIN_WIDTH = 1e-6
"""Least width of a Gaussian in `kernel_density`, in units of the largest singular value: equal
values have distance 0."""


def fit_unit_bulk(
    eigenvalues: ArrayLike,
    shape: tuple[int, int],
    estimator: str = "bema",
    *,
    beta: float = BEMA_BETA,
) -> SpectrumFit:
    """Fit the Marchenko-Pastur law to a weight's eigenvalues and count the spikes above the edge.

    The law is the density that theory predicts for eigenvalues of noise of one variance sigma^2.
    The edge is the limit above which an eigenvalue counts as a spike, that is, as signal. `bema`
    compares eigenvalues lambda_k in the middle of the spectrum with the quantiles q_k of the law of
    variance 1: sigma^2 = sum q_k lambda_k / sum q_k^2 over 0.2 p <= k <= 0.8 p, where p is the
    number of eigenvalues. The edge of `bema` is the upper end of the law plus the distance that
    chance explains (the Tracy-Widom fluctuation). `kernel` smooths each singular value nu_i by a
    Gaussian of width (nu_{i+15} - nu_{i-15}) / 2. The density of the law is fitted to the smoothed
    density by least squares. The edge of `kernel` is the upper end of the law.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        estimator: `bema` or `kernel`.
        beta: Probability that the largest noise eigenvalue lies above the edge of `bema`.

    Returns:
        The fit. If no law can be fitted, the verdict `phase` is `degenerate` or `no law`, and
        `reason` says why.

    Raises:
        TypeError: If beta is no number or the shape is no pair of whole numbers.
        ValueError: If the estimator is unknown, the eigenvalues do not fit the shape or are
            clearly negative, or beta lies outside [1e-6, 1 - 1e-6].

    Source:
        Ke, Ma & Lin, JASA 118 (2023), algorithm 1 for the standard covariance model; Staats,
        Thamm & Rosenow, Phys. Rev. E 108 (2023) L022302.

    Examples:
        >>> from hf_rmt.spectra.ensembles import marchenko_pastur_matrix
        >>> weight = marchenko_pastur_matrix((800, 400), variance=4.0, spikes=(60.0,), seed=0)
        >>> fit = fit_unit_bulk(np.linalg.svd(weight, compute_uv=False) ** 2, weight.shape)
        >>> fit.n_spikes, round(fit.law.variance, 1)
        (1, 4.0)
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}; pass one of them"
        )
    chance = check_number("beta", beta, *BETAS)
    return fitted(eigenvalues, shape, partial(_unit_bulk, estimator, chance))


def _unit_bulk(estimator: str, beta: float, rows: int, values: Array) -> SpectrumFit:
    """Fit noise of one variance to the eigenvalues `values` of a matrix with `rows` rows.

    `fit_unit_bulk` explains the other arguments and the result.
    """
    if estimator == "bema":
        law, residual = _bema(values, rows)
        fluctuation = law.edge_fluctuation(law.critical_points[-1], rows)
        edge = law.upper_edge + tracy_widom_quantile(1 - beta) * fluctuation
    else:
        law, residual = _kernel(values, rows)
        edge = law.upper_edge
    signal = values > edge
    return SpectrumFit(
        shape=(rows, len(values)),
        eigenvalues=values,
        law=law,
        is_signal=signal,
        upper_edge=edge,
        residual=residual,
        converged=True,
        published=True,
        **verdict(law, values[~signal], bool(signal.any())),
    )


fit_bema = partial(fit_unit_bulk, estimator="bema")
fit_kernel = partial(fit_unit_bulk, estimator="kernel")


def _bema(values: Array, rows: int) -> tuple[MarchenkoPastur, float]:
    """The noise law that BEMA fits, see `fit_unit_bulk`, and the residual of the fit.

    The residual is the root mean square difference between eigenvalues and quantiles of the law.
    """
    columns = len(values)
    ranks = np.arange(1, columns + 1)
    low, high = (share * columns for share in BEMA_BULK)
    middle = (ranks >= low) & (ranks <= high)
    standard = MarchenkoPastur(1.0, columns / rows)
    quantiles = standard.quantile(1 - ranks[middle] / columns)
    variance = float(quantiles @ values[middle] / (quantiles @ quantiles))
    residual = float(np.sqrt(np.mean((values[middle] - variance * quantiles) ** 2)))
    return MarchenkoPastur(variance, columns / rows), residual


def _kernel(values: Array, rows: int) -> tuple[MarchenkoPastur, float]:
    """The noise law that `kernel` fits, see `fit_unit_bulk`, and the residual of the fit.

    The residual is the root mean square difference between two densities of singular values: that
    of the law and the smoothed one of the weight. The singular values are divided by a scale first,
    so scaling a weight changes only the variance sigma^2. The densities are compared on a grid. The
    grid ends at the upper end of the law with the largest sigma that is tried. Beyond this point,
    every law that is tried has the density 0.
    """
    aspect_ratio = len(values) / rows
    standard = MarchenkoPastur(1.0, aspect_ratio)
    scale = float(np.sqrt(np.median(values) / standard.quantile(0.5)))
    nu = np.sqrt(values) / scale
    grid = np.linspace(0.0, SCALES[1] * np.sqrt(standard.upper_edge), GRID_POINTS + 1)[1:]
    measured = kernel_density(nu, grid)

    def misfit(log_sigma: float) -> float:
        x = grid / np.exp(log_sigma)
        density = 2 * x * standard.pdf(x**2) / np.exp(log_sigma)
        return float(np.mean((measured - density) ** 2))

    steps = np.linspace(np.log(SCALES[0]), np.log(SCALES[1]), COARSE_STEPS)
    best = int(np.argmin([misfit(step) for step in steps]))
    bounds = (steps[max(best - 1, 0)], steps[min(best + 1, COARSE_STEPS - 1)])
    solution = minimize_scalar(misfit, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    variance = (float(np.exp(solution.x)) * scale) ** 2
    return MarchenkoPastur(variance, aspect_ratio), float(np.sqrt(solution.fun))


def kernel_density(singular_values: Array, points: Array) -> Array:
    """Density of singular values, each smoothed by a Gaussian; see `KERNEL_WINDOW` for its width.

    Args:
        singular_values: Descending, shape (p,).
        points: Where the density is wanted, shape (m,).

    Returns:
        The density at these points, shape (m,). Its integral over the whole line is 1.
    """
    nu, columns = singular_values, len(singular_values)
    ranks = np.arange(columns)
    above = nu[np.maximum(ranks - KERNEL_WINDOW, 0)]
    below = nu[np.minimum(ranks + KERNEL_WINDOW, columns - 1)]
    width = np.maximum((above - below) / 2, MIN_WIDTH * nu[0])
    bells = np.exp(-0.5 * ((points[:, None] - nu) / width) ** 2) / width
    return bells.sum(1) / (columns * np.sqrt(2 * np.pi))
