"""The methods that fit a law of the noise: `pdb`, `power-law`, `bema`, `kernel`.

The eigenvalues of a weight are its squared singular values. A law is a distribution of the
eigenvalues of pure noise. The bulk of a law is the range that these eigenvalues fill. Eigenvalues
of a weight above the bulk are signal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_rmt.compression.methods.spectral import SpectralMethod
from hf_rmt.settings import CompressionSettings, register_method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_rmt.spectra import SpectrumFit


class PopulationDoubleBulk(SpectralMethod):
    """Fits noise that has one variance in some directions of the weight and another in the rest.

    A direction is a unit vector with as many entries as the weight's shorter side. What is fitted
    is a law: the distribution of the squared singular values of pure noise.
    """

    name = "pdb"
    help = "The population double bulk: noise of two variances (Wu, Zhu & Li 2025)."
    concurrent = True

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Split squared singular values into signal and noise, as `SpectralMethod.fit` explains.

        `hf_rmt.spectra.fit_double_bulk` does this.
        """
        from hf_rmt.spectra import fit_double_bulk

        return fit_double_bulk(eigenvalues, shape)


class PowerLawBulk(SpectralMethod):
    """Fits noise whose variances follow a power law between a least and a largest variance.

    A direction is a unit vector with as many entries as the weight's shorter side. The noise has a
    variance in each direction. What is fitted is the distribution of the squared singular values of
    pure noise.
    """

    name = "power-law"
    help = (
        "Noise whose variances follow a power law; it has as many parameters as pdb and fits the "
        "spectra of trained MLPs better."
    )
    concurrent = True

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Split squared singular values into signal and noise, as `SpectralMethod.fit` explains.

        `hf_rmt.spectra.fits.power_law_bulk.fit_power_law_bulk` does this.
        """
        from hf_rmt.spectra.fits.power_law_bulk import fit_power_law_bulk

        return fit_power_law_bulk(eigenvalues, shape)


class Bema(SpectralMethod):
    """Finds the variance of the noise from the middle of a weight's squared singular values.

    All entries of the noise have this variance.
    """

    name = "bema"
    help = "Noise of one variance, fitted to quantiles of the spectrum (Ke, Ma & Lin 2023)."
    concurrent = True

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Split squared singular values into signal and noise, as `SpectralMethod.fit` explains.

        `hf_rmt.spectra.fits.unit_bulk.fit_bema` does this.
        """
        from hf_rmt.spectra.fits.unit_bulk import fit_bema

        return fit_bema(eigenvalues, shape)


class Kernel(SpectralMethod):
    """Finds the variance of the noise from a smoothed density of a weight's singular values.

    All entries of the noise have this variance.
    """

    name = "kernel"
    help = (
        "Noise of one variance, fitted to a kernel density of the singular values (Staats et al. "
        "2023)."
    )
    concurrent = True

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Split squared singular values into signal and noise, as `SpectralMethod.fit` explains.

        `hf_rmt.spectra.fits.unit_bulk.fit_kernel` does this.
        """
        from hf_rmt.spectra.fits.unit_bulk import fit_kernel

        return fit_kernel(eigenvalues, shape)


register_method(PopulationDoubleBulk())
register_method(PowerLawBulk())
register_method(Bema())
register_method(Kernel())
