"""Mathematics of one weight matrix: noise laws, their fit to a spectrum, the spikes beyond.

The model, stated once. A weight is oriented as X of shape N x p with N >= p, c = p / N, and
X = N^{-1/2} Z Sigma^{1/2} with iid entries of mean 0 and variance 1 in Z. Its eigenvalues are
those of X'X: the squared singular values of the weight. Sigma has K spikes alpha_1..alpha_K,
the signal, and a bulk, the noise: one variance sigma^2 (unit bulk, the Marchenko-Pastur law), a
fraction t of variance sigma_1^2 and the rest sigma_2^2 < sigma_1^2 (double bulk, PDB), or a range
of variances (power-law bulk). `review` asks the entries of the weight whether the spikes can be
trusted.

NumPy and SciPy in float64 only; nothing here knows torch.
"""

from hf_rmt.spectra.double_bulk import DoubleBulk
from hf_rmt.spectra.entries import EntryDiagnostics, entry_diagnostics
from hf_rmt.spectra.fit import fit_double_bulk
from hf_rmt.spectra.marchenko_pastur import MarchenkoPastur
from hf_rmt.spectra.power_law_bulk import PowerLawBulk, fit_power_law_bulk
from hf_rmt.spectra.review import fit_weight, review
from hf_rmt.spectra.split import Phase, SpectrumFit
from hf_rmt.spectra.tracy_widom import tracy_widom_cdf, tracy_widom_quantile
from hf_rmt.spectra.truncation import truncate
from hf_rmt.spectra.unit_bulk import fit_unit_bulk

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
