"""Mathematics of one weight matrix: how its eigenvalues are split into noise and signal.

The model is as follows. The weight, or its transpose if it is wide, is a matrix X of shape N x p
with N >= p, and c = p / N. In the model, X = N^{-1/2} Z Sigma^{1/2}, where Z has independent
entries of mean 0 and variance 1, and Sigma is a p x p covariance matrix. The eigenvalues of a
weight are those of X'X (X' is the transpose of X): its squared singular values. A law is the
distribution of the eigenvalues of noise. An edge is an end of the interval that these eigenvalues
fill.

The eigenvalues of Sigma are the population variances. K of them are the spikes alpha_1..alpha_K,
the signal. If such a variance is large enough, one eigenvalue of the weight stands out of the
noise. This eigenvalue is called a spike, too, and its singular vectors are a direction of the
signal. The other population variances are the bulk, the noise. The bulk has one variance sigma^2
(unit bulk, the Marchenko-Pastur law); or a fraction t has variance sigma_1^2 and the rest has
sigma_2^2 < sigma_1^2 (population double bulk, PDB); or it has a range of variances (power-law
bulk). `review` decides from the entries of the weight whether the spikes can be trusted.

This package uses only NumPy and SciPy, in float64. It does not use torch.
"""

from hf_rmt.spectra.entries import EntryDiagnostics, entry_diagnostics
from hf_rmt.spectra.fits.double_bulk import fit_double_bulk
from hf_rmt.spectra.fits.power_law_bulk import PowerLawBulk, fit_power_law_bulk
from hf_rmt.spectra.fits.unit_bulk import fit_unit_bulk
from hf_rmt.spectra.laws.double_bulk import DoubleBulk
from hf_rmt.spectra.laws.marchenko_pastur import MarchenkoPastur
from hf_rmt.spectra.laws.tracy_widom import tracy_widom_cdf, tracy_widom_quantile
from hf_rmt.spectra.review import fit_weight, review
from hf_rmt.spectra.split import Phase, SpectrumFit
from hf_rmt.spectra.truncation import truncate

__all__ = [
    "DoubleBulk",
    "EntryDiagnostics",
    "MarchenkoPastur",
    "Phase",
    "PowerLawBulk",
    "SpectrumFit",
    "entry_diagnostics",
    "fit_double_bulk",
    "fit_power_law_bulk",
    "fit_unit_bulk",
    "fit_weight",
    "review",
    "tracy_widom_cdf",
    "tracy_widom_quantile",
    "truncate",
]
