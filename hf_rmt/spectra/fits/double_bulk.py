"""Which eigenvalues of a weight are signal: the double bulk and its spikes, fitted together."""

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
"""Largest eigenvalue with which powers in the published estimator stay finite."""
Estimator = Callable[[int, Array], SpectrumFit]
"""Maps N and descending eigenvalues, none negative, to their fit."""


def fit_double_bulk(
    eigenvalues: ArrayLike, shape: tuple[int, int], *, published: bool = False
) -> SpectrumFit:
    """Fit the population double bulk model to a weight's eigenvalues and count its spikes.

    The spikes are removed, a law is fitted to the rest, its edges with their Tracy-Widom
    fluctuation say which eigenvalues are spikes, and so on until nothing changes. The first round
    starts from the certain spikes alone, so that the least fixed point is found. If the count keeps
    growing, as with heavy tails, the result of the first round is taken and the phase is
    `heavy-tailed`.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        published: Use PDBLS as the paper states it instead: one round, asymptotic edge.

    Returns:
        The fit. A spectrum that cannot be fitted is `degenerate` or has `no law`, with a reason.

    Raises:
        ValueError: If the eigenvalues do not fit the shape or are clearly negative.

    Source:
        Wu, Zhu & Li, ICML 2025, algorithm 1; the changes are described in `estimation`.

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
    """The steps that all methods with a law share before and after their own estimate.

    Args:
        eigenvalues: Squared singular values of the weight, shape (min(shape),), in any order.
        shape: Shape of the weight; its orientation does not matter.
        estimator: The method; it sees eigenvalues whose largest lies in [1, 2).
        normalise: Whether to scale them always. The published estimator depends on the scale. It
            gets unscaled eigenvalues unless its numbers would overflow.

    Returns:
        The fit in the units of the eigenvalues. `degenerate` or `no law` with a reason where
        there is nothing to estimate.

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
    """The published fit: one round, the asymptotic edge, no gaps and no null directions."""
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
    """The fit of a separation: its verdict, and its law rescaled to the population.

    Null directions belong to neither noise nor signal.

    Args:
        separator: Maps descending eigenvalues and N to their separation.
        rows: N.
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
