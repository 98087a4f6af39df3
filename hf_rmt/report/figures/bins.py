"""A spectrum in bins, as every figure shows it, and how badly its law fits these bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_rmt.spectra import SpectrumFit
from hf_rmt.spectra.laws.law import BulkLaw

Array = NDArray[np.float64]

LONG_TAIL = 2.5
"""The edge is the end of the noise. If the largest value exceeds this many times the edge, only a
part of the spectrum is drawn."""
BULK_VIEW = 1.5
"""A spectrum with a long tail, see `LONG_TAIL`, is drawn up to this many times the edge."""
BINS = (20, 60)
"""Smallest and largest number of bins between 0 and the edge."""
CURVE_POINTS = 200
MISFIT = 0.1
"""If the share of the noise that `law_misfit` returns is larger than this, a note says so."""
MISFIT_COUNT = 10
"""No note is made if the law misses at most this number of eigenvalues. In simulations of 50 to 768
eigenvalues, the true law missed up to 9."""


@dataclass(frozen=True)
class BinnedSpectrum:
    """A histogram of a spectrum that has a law.

    Attributes:
        bins: Bounds of the bins, ascending, shape (m + 1,); one of them is the edge.
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
    """Positions of finite eigenvalues in a figure: the singular values, or the eigenvalues.

    Args:
        eigenvalues: Squared singular values of a weight.
        square_root: Whether to give singular values and not eigenvalues.
    """
    finite = np.maximum(eigenvalues[np.isfinite(eigenvalues)], 0.0)
    return np.sqrt(finite) if square_root else finite


def has_long_tail(fit: SpectrumFit, *, square_root: bool) -> bool:
    """Whether the largest value is so large that in a figure the noise would shrink to a line."""
    if fit.noise_law is None:
        return False
    reach = fit.eigenvalues[0] / fit.upper_edge
    return bool((np.sqrt(reach) if square_root else reach) > LONG_TAIL)


def binned(fit: SpectrumFit, *, square_root: bool) -> BinnedSpectrum:
    """Noise and signal in bins of equal width; one bin ends at the edge.

    Args:
        fit: A fitted spectrum with a law.
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
    """The law's density f(lambda) over eigenvalues, or 2 nu f(nu^2) over singular values nu.

    Args:
        law: The law of the noise.
        square_root: Whether to give the density over singular values.
        points: Number of points in each interval in which the law has eigenvalues.

    Returns:
        Points, which are closer together at the edges of an interval, and the density at them. The
        density is zero between two intervals.
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
    """Share of the noise that would have to move to other bins for the law to hold.

    It is half the sum over the bins of |measured share - share under the law|. It is large if the
    law has a gap (an interval without eigenvalues) and the data have no gap. The Kolmogorov
    distance does not show this.

    Args:
        fit: A fitted spectrum.

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
    """A note on how much of the noise the law misses; empty if chance can explain that much."""
    misfit = law_misfit(fit)
    if not misfit > max(MISFIT, MISFIT_COUNT / max(len(fit.noise), 1)):
        return ""
    return f"the law misses {100 * misfit:.0f} % of the noise"


def below_edge(fit: SpectrumFit) -> NDArray[np.bool_]:
    """Which eigenvalues count as signal although they lie below the upper edge, shape (p,).

    They lie in the gap between two parts of the bulk, or the count of spikes did not converge.
    """
    if fit.noise_law is None:
        return np.zeros(len(fit.eigenvalues), dtype=bool)
    return fit.is_signal & (fit.eigenvalues <= fit.noise_law.upper_edge)
