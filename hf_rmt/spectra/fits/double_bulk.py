"""Fits the double bulk (noise of two variances) to the eigenvalues of a weight with a signal.

`hf_rmt.spectra` explains noise, signal and their law.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from hf_rmt.spectra.eigenvalues import (
    live_count,
    sorted_eigenvalues,
    why_degenerate,
    why_lawless,
)
from hf_rmt.spectra.fits.published import published_bulk
from hf_rmt.spectra.fits.separation import Separation, finite_size_edges, separate
from hf_rmt.spectra.laws.spike_map import Array
from hf_rmt.spectra.split import Phase, SpectrumFit, verdict, without_law

SAFE = (1e-60, 1e60)
"""If the largest eigenvalue lies in this range, the powers of this eigenvalue that the published
estimator computes stay finite."""
Estimator = Callable[[int, Array], SpectrumFit]
"""A function that makes a `SpectrumFit` from the longer side N of a weight and its eigenvalues,
which are descending and not negative."""


def fit_double_bulk(
    eigenvalues: ArrayLike, shape: tuple[int, int], *, published: bool = False
) -> SpectrumFit:
    """Fit the population double bulk model to a weight's eigenvalues and count the spikes.

    The double bulk is noise of two variances. Spikes are the eigenvalues of the signal. The fit
    goes in rounds. A round removes the spikes and fits a law, the predicted distribution of noise
    eigenvalues, to the rest. Eigenvalues that lie further outside of the range of this law than
    chance explains (the Tracy-Widom fluctuation) are the spikes of the next round. The rounds end
    when the spikes stay the same. The first round removes only eigenvalues that are certainly
    spikes, so that no more spikes are found than needed. If the count keeps growing, as with heavy
    tails, the result of the first round is taken and the verdict `phase` is `heavy-tailed`.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        published: Whether to use the published estimator, PDBLS. It makes one round, and every
            eigenvalue above the upper end of the law is a spike, without a margin for chance.

    Returns:
        The fit. If no law can be fitted, the verdict `phase` is `degenerate` or `no law`, and
        `reason` says why.

    Raises:
        TypeError: If the shape is no pair of whole numbers.
        ValueError: If the eigenvalues do not fit the shape or are clearly negative.

    Source:
        Wu, Zhu & Li, ICML 2025, algorithm 1; the module `estimation` describes the changes.

    Examples:
        >>> from hf_rmt.spectra.ensembles import double_bulk_matrix
        >>> weight = double_bulk_matrix(
        ...     (800, 400), mixing=0.4, variances=(3.0, 1.0), spikes=(30.0, 20.0), seed=0
        ... )
        >>> fit = fit_double_bulk(np.linalg.svd(weight, compute_uv=False) ** 2, weight.shape)
        >>> fit.n_spikes, str(fit.phase)
        (2, 'bulk+spikes')
    """
    estimator = _published if published else partial(self_consistent, separate)
    return fitted(eigenvalues, shape, estimator, normalise=not published)


def fitted(
    eigenvalues: ArrayLike,
    shape: tuple[int, int],
    estimator: Estimator,
    *,
    normalise: bool = True,
) -> SpectrumFit:
    """Check and scale the eigenvalues, fit a law to them, and scale the fit back.

    The law is the distribution of eigenvalues that theory predicts for noise.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        estimator: The function that fits the law; see `Estimator`. If the eigenvalues are scaled,
            the largest one that it gets lies in [1, 2).
        normalise: If True, the eigenvalues are always scaled. If False, they are scaled only if
            powers of them would overflow. Pass False if the result of the estimator depends on the
            scale, as that of Wu, Zhu & Li does.

    Returns:
        The fit in the units of the eigenvalues. If no law can be fitted, the verdict `phase` is
        `degenerate` or `no law`, and `reason` says why.

    Raises:
        TypeError: If the shape is no pair of whole numbers.
        ValueError: If the eigenvalues do not fit the shape or are clearly negative.
    """
    values = sorted_eigenvalues(eigenvalues, shape)
    if reason := why_degenerate(values):
        return without_law(shape, values, reason)
    values = np.maximum(values, 0.0)
    if reason := why_lawless(values, max(shape)):
        return without_law(shape, values, reason, phase=Phase.LAWLESS)
    scaled = normalise or not SAFE[0] < values[0] < SAFE[1]
    unit = float(2.0 ** np.floor(np.log2(values[0]))) if scaled else 1.0
    return estimator(max(shape), values / unit).in_units(unit, values)


def _published(rows: int, values: Array) -> SpectrumFit:
    """Fit noise and signal by PDBLS, the published estimator that `published_bulk` describes.

    Eigenvalues above the largest one that theory predicts for noise are signal, without a margin
    for chance. Gaps within the noise and eigenvalues of 0 are not treated in any special way.
    """
    estimate = published_bulk(values, rows)
    edge = estimate.law.upper_edge
    signal = values > edge
    return SpectrumFit(
        shape=(rows, len(values)),
        eigenvalues=values,
        law=estimate.law,
        is_signal=signal,
        upper_edge=edge,
        residual=estimate.residual,
        converged=estimate.converged,
        published=True,
        **verdict(estimate.law, values[~signal], bool(signal.any())),
    )


def self_consistent(
    separator: Callable[[Array, int], Separation], rows: int, values: Array
) -> SpectrumFit:
    """Separate spikes (signal eigenvalues) from noise, and return the fit with its verdict.

    `separator` fits a law to the noise: the distribution that theory predicts for its eigenvalues.
    The returned fit holds this law in the form that `SpectrumFit` describes for its attribute
    `law`. Eigenvalues of 0 are neither noise nor signal.

    Args:
        separator: Maps descending eigenvalues and N to a `Separation`, as `separate` does.
        rows: N, the longer side of the weight.
        values: Eigenvalues, descending, none negative, shape (p,).

    Returns:
        The fit.
    """
    live = values[: live_count(values)]
    result = separator(live, rows)
    law, signal = result.estimate.law, result.signal
    left = rows - int(signal.sum())
    noise = live[~signal]
    return SpectrumFit(
        shape=(rows, len(values)),
        eigenvalues=values,
        law=law.rescaled(rows / left, aspect_ratio=len(noise) / rows),
        is_signal=np.concatenate([signal, np.zeros(len(values) - len(live), dtype=bool)]),
        upper_edge=float(finite_size_edges(law, left)[-1, 1]),
        residual=result.estimate.residual,
        converged=result.converged,
        **verdict(law, noise, bool(signal.any()), result.reason),
    )
