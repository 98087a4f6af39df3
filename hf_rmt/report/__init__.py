"""Reports: what the spectra say and what compression costs, as tables, files and figures.

Sees spectra and plans only. Figures need matplotlib, the extra `plots`.
"""

from hf_rmt.report.card import model_card
from hf_rmt.report.compression import CompressionReport
from hf_rmt.report.spectral import LayerSpectrum, SpectralReport

__all__ = [
    "CompressionReport",
    "LayerSpectrum",
    "SpectralReport",
    "model_card",
]
