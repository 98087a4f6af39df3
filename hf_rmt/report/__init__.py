"""Reports on spectra (squared singular values of weights) and on the costs of compression.

A report is a table, a file or a figure. Of this library, this package imports only `hf_rmt.spectra`
and `hf_rmt.plan`. Figures need matplotlib: `pip install "hf_rmt[plots]"`.
"""

from hf_rmt.report.card.card import model_card
from hf_rmt.report.card.head import CardMetadata
from hf_rmt.report.compression import CompressionReport
from hf_rmt.report.layer import LayerSpectrum
from hf_rmt.report.sizes import Sizes
from hf_rmt.report.spectral import SpectralReport

__all__ = [
    "CardMetadata",
    "CompressionReport",
    "LayerSpectrum",
    "Sizes",
    "SpectralReport",
    "model_card",
]
