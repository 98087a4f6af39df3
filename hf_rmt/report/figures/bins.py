"""Counts the eigenvalues of a weight in bins, and measures how badly a law fits the bins.

The eigenvalues of a weight are its squared singular values. A law is the density of eigenvalues
that theory predicts for noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_rmt.spectra import SpectrumFit
from hf_rmt.spectra.laws.law import BulkLaw

Array = NDArray[np.float64]

LONG_TAIL = 2.5
"""The edge is the largest value that counts as noise. If the largest value of a spectrum exceeds
this many times the edge, only a part of the spectrum is drawn."""
BULK_VIEW = 1.5
"""A spectrum with a long tail, see `LONG_TAIL`, is drawn up to this many times the edge, the end
of the noise."""
BINS = (20, 60)
"""Smallest and largest number of bins between 0 and the edge, the end of the noise."""
CURVE_POINTS = 200
MISFIT = 0.1
"""A note is made if more than this share of the noise does not follow the law; see
`law_misfit`."""
MISFIT_COUNT = 10
"""No note (see `MISFIT`) is made if at most this number of eigenvalues does not follow the law. In
simulations of 50 to 768 eigenvalues that have the law, up to 9 did not seem to follow it."""


@dataclass(frozen=True)
class BinnedSpectrum:
    """A histogram of singular values or eigenvalues of one weight, split into noise and signal.

    The signal values stand out of the noise values; `hf_rmt.spectra` explains how they are split.

    Attributes:
        bins: Bounds of the m bins, ascending, shape (m + 1,); one of the bounds is `edge`.
        noise: Number of noise values in each bin, shape (m,).
        signal: Number of signal values in each bin, shape (m,).
        edge: Largest value that counts as noise.
        limit: Where the drawing ends, inside the last bin. Values beyond the last bin are not
            counted.
        total: Number of all values.
    """

    bins: Array
    noise: NDArray[np.int64]
    signal: NDArray[np.int64]
    edge: float
    limit: float
    total: int


def positions(eigenvalues: Array, *, square_root: bool) -> Array:
    """The finite eigenvalues of a weight, or their square roots, to be drawn in a figure.

    Args:
        eigenvalues: Squared singular values of a weight.
        square_root: Whether to return the square roots, which are the singular values.
    """
    finite = np.maximum(eigenvalues[np.isfinite(eigenvalues)], 0.0)
    return np.sqrt(finite) if square_root else finite


def has_long_tail(fit: SpectrumFit, *, square_root: bool) -> bool:
    """Whether the largest value of a spectrum is far above the noise; see `LONG_TAIL`.

    A spectrum is the list of a weight's squared singular values, or of its singular values if
    `square_root` is true. In a figure of the whole spectrum, the noise would then shrink to a line.
    The answer is False if no law (density that theory predicts for noise) was fitted.
    """
    if fit.noise_law is None:
        return False
    reach = fit.eigenvalues[0] / fit.upper_edge
    return bool((np.sqrt(reach) if square_root else reach) > LONG_TAIL)


def binned(fit: SpectrumFit, *, square_root: bool) -> BinnedSpectrum:
    """Noise and signal of a spectrum in bins of equal width.

    One bin ends at the edge, the largest value that counts as noise.

    Args:
        fit: A spectrum (squared singular values of a weight) to which a law, the density that
            theory predicts for noise, was fitted.
        square_root: Whether to bin singular values and not eigenvalues.

    Returns:
        The bins and how many values they hold.
    """
    values = positions(fit.eigenvalues, square_root=square_root)
    edge = float(np.sqrt(fit.upper_edge) if square_root else fit.upper_edge)
    tail = has_long_tail(fit, square_root=square_root)
    limit = BULK_VIEW * edge if tail else 1.05 * max(edge, float(values[0]))
    noise, signal = values[~fit.is_signal], values[fit.is_signal]
    wanted = len(np.histogram_bin_edges(noise, "fd")) - 1
    width = edge / int(np.clip(wanted * edge / max(np.ptp(noise), 1e-9 * edge), *BINS))
    bins = np.arange(0.0, limit + width, width)
    counts = [np.histogram(group, bins)[0] for group in (noise, signal)]
    return BinnedSpectrum(bins, counts[0], counts[1], edge, limit, len(values))


def law_curve(
    law: BulkLaw, *, square_root: bool, points: int = CURVE_POINTS
) -> tuple[Array, Array]:
    """The curve of a law, the density that theory predicts for noise.

    If f(x) is the density of eigenvalues (squared singular values), then the density of singular
    values is 2 x f(x^2).

    Args:
        law: The law, which gives the density f.
        square_root: Whether to return the density of singular values, not of eigenvalues.
        points: Number of points in each interval in which f is positive.

    Returns:
        Points, and the density at these points. The points are closer together near the ends of an
        interval. The density is zero between two intervals.
    """
    steps = np.cos(np.linspace(0.0, np.pi, points))
    edges = np.sqrt(law.bulk_edges)
    nu = np.stack([(low + high - (high - low) * steps) / 2 for low, high in edges])
    nu = np.maximum(nu, 1e-5 * edges[-1, 1])  # over eigenvalues the density has a pole at 0
    density = law.pdf(nu**2)
    density[:, 0] *= edges[:, 0] == 0  # at an edge, rounding would decide the value
    density[:, -1] = 0.0
    nu, density = nu.ravel(), density.ravel()
    return (nu, 2 * nu * density) if square_root else (nu**2, density)


def law_misfit(fit: SpectrumFit) -> float:
    """Share of the noise eigenvalues that would have to change bins to follow the law.

    The law is the density of eigenvalues that theory predicts for noise. The result is half the sum
    over the bins of |measured share - share under the law|. It is large if the law has a gap (an
    interval without eigenvalues) and the data have no gap. The Kolmogorov distance, the largest
    difference of the distribution functions, does not show this.

    Args:
        fit: The spectrum (squared singular values) of a weight, with the law if one was fitted.

    Returns:
        A share between 0 and 1; nan without a law or without noise.
    """
    if fit.noise_law is None or not len(fit.noise):
        return float("nan")
    spectrum = binned(fit, square_root=True)
    measured = spectrum.noise / len(fit.noise)
    expected = np.diff(fit.noise_law.cdf(spectrum.bins**2))
    beyond = abs(expected.sum() - measured.sum())  # one more bin, for all larger values
    return float((np.abs(measured - expected).sum() + beyond) / 2)


def misfit_note(fit: SpectrumFit) -> str:
    """A note on the share of the noise that does not follow the fitted law.

    `law_misfit` explains this share and the law. The text is empty if chance can explain the share.
    """
    misfit = law_misfit(fit)
    if not misfit > max(MISFIT, MISFIT_COUNT / max(len(fit.noise), 1)):
        return ""
    return f"the law misses {100 * misfit:.0f} % of the noise"


def below_edge(fit: SpectrumFit) -> NDArray[np.bool_]:
    """Which eigenvalues are signal although they lie below the upper edge of the noise law.

    The law is the density that theory predicts for noise. It is zero above its upper edge. Signal
    can lie in a gap between two intervals of noise, or below the edge if the fit has not settled
    (see `converged` of `SpectrumFit`). The result has one entry for each eigenvalue.
    """
    if fit.noise_law is None:
        return np.zeros(len(fit.eigenvalues), dtype=bool)
    return fit.is_signal & (fit.eigenvalues <= fit.noise_law.upper_edge)
