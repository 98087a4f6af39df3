"""A whole-model method as another package would bring it: one rank for all layers."""

from __future__ import annotations

from typing import Any

from hf_rmt.checks import check_integer
from hf_rmt.compression.apply import compress_shared
from hf_rmt.compression.methods.spectral import SPECTRAL_OPTIONS, SpectralMethod
from hf_rmt.nn.counterparts import matrix_shape
from hf_rmt.settings import CompressionSettings, Option
from hf_rmt.spectra import SpectrumFit
from hf_rmt.spectra.truncation import truncate

PARTS = Option(
    "parts",
    4,
    lambda name, value: check_integer(name, value, 1),
    "The rank of every layer is the shortest side of all layers over this.",
    parse=int,
)


class OneRank(SpectralMethod):
    """Gives all layers of a model the same rank, which only the whole model tells."""

    name = "one-rank"
    help = "The same rank for all layers."
    options = (PARTS, *SPECTRAL_OPTIONS)
    finds_law = False

    def fit(self, eigenvalues: Any, shape: Any, settings: CompressionSettings) -> SpectrumFit:
        rank = max(1, min(shape) // settings.parts)
        return truncate(eigenvalues, shape, rank=rank, energy=None, fraction=None)

    def compress_model(
        self, model: Any, names: Any, settings: Any, *, dry_run: bool = False, **_: Any
    ) -> Any:
        shortest = min(min(matrix_shape(model.get_submodule(name))) for name in names)
        told = settings.replace(max_rank=max(1, shortest // settings.parts))
        return compress_shared(model, names, told, dry_run=dry_run)
