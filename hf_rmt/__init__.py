"""Signal and noise in a network's weights: random matrix theory for transformers models.

A weight is signal plus noise. Random matrix theory says where the signal ends and the noise begins.
The signal is kept exact, low-rank and trainable. The noise is stored as cheaply as the user asks.

Importing this package registers the quantization method "rmt" with transformers. If transformers
is not imported yet, this happens right after its import. All else is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_rmt.registration import register_with_transformers

if TYPE_CHECKING:
    from hf_rmt.huggingface.api import analyze, compress, export_dense
    from hf_rmt.huggingface.config import RMTConfig
    from hf_rmt.huggingface.lora.extract import extract_adapter
    from hf_rmt.huggingface.lora.targets import lora_targets
    from hf_rmt.huggingface.search.search import SearchResult, search
    from hf_rmt.huggingface.training.filter_callback import RMTCallback
    from hf_rmt.huggingface.training.ternary_callback import TernaryCallback
    from hf_rmt.huggingface.training.update import filter_update
    from hf_rmt.kernels.random_features import TernaryRandomFeatures
    from hf_rmt.nn import (
        LatentTernaryLinear,
        SpikedConv2d,
        SpikedLinear,
        StepActivation,
        TernaryLinear,
    )
    from hf_rmt.nn.layouts import layout_line, set_layout
    from hf_rmt.plan import CompressionPlan, LayerPlan
    from hf_rmt.report import CompressionReport, SpectralReport
    from hf_rmt.settings import CompressionSettings
    from hf_rmt.spectra import (
        DoubleBulk,
        MarchenkoPastur,
        SpectrumFit,
        fit_double_bulk,
        fit_unit_bulk,
    )

__version__ = "0.1.0"

_HOMES = {
    "RMTCallback": "hf_rmt.huggingface.training.filter_callback",
    "RMTConfig": "hf_rmt.huggingface.config",
    "analyze": "hf_rmt.huggingface.api",
    "compress": "hf_rmt.huggingface.api",
    "export_dense": "hf_rmt.huggingface.api",
    "extract_adapter": "hf_rmt.huggingface.lora.extract",
    "filter_update": "hf_rmt.huggingface.training.update",
    "lora_targets": "hf_rmt.huggingface.lora.targets",
    "SearchResult": "hf_rmt.huggingface.search.search",
    "search": "hf_rmt.huggingface.search.search",
    "TernaryCallback": "hf_rmt.huggingface.training.ternary_callback",
    "TernaryRandomFeatures": "hf_rmt.kernels.random_features",
    "LatentTernaryLinear": "hf_rmt.nn",
    "SpikedConv2d": "hf_rmt.nn",
    "SpikedLinear": "hf_rmt.nn",
    "StepActivation": "hf_rmt.nn",
    "TernaryLinear": "hf_rmt.nn",
    "CompressionSettings": "hf_rmt.settings",
    "layout_line": "hf_rmt.nn.layouts",
    "set_layout": "hf_rmt.nn.layouts",
    "CompressionPlan": "hf_rmt.plan",
    "LayerPlan": "hf_rmt.plan",
    "CompressionReport": "hf_rmt.report",
    "SpectralReport": "hf_rmt.report",
    "DoubleBulk": "hf_rmt.spectra",
    "MarchenkoPastur": "hf_rmt.spectra",
    "SpectrumFit": "hf_rmt.spectra",
    "fit_double_bulk": "hf_rmt.spectra",
    "fit_unit_bulk": "hf_rmt.spectra",
}

_WITHOUT_TRANSFORMERS = {
    "analyze": "hf_rmt.compression.model",
    "compress": "hf_rmt.compression.model",
    "export_dense": "hf_rmt.compression.model",
}
"""For each function, the module from which it is imported if transformers is not installed."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_rmt' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (
            name not in _WITHOUT_TRANSFORMERS
            or (error.name or "").partition(".")[0] != "transformers"
        ):
            raise
        return getattr(import_module(_WITHOUT_TRANSFORMERS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_transformers()
