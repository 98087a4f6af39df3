"""What the HTML page of a report shows, as plain values: layers and the spectra of their weights.

The spectrum of a weight is the list of its squared singular values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hf_rmt.plan import CompressionPlan, LayerPlan
from hf_rmt.report import tables
from hf_rmt.report.depth import places
from hf_rmt.report.layer import MISFIT, LayerSpectrum
from hf_rmt.report.page.energies import energy_words
from hf_rmt.report.page.spectrum import rounded, spectrum_record
from hf_rmt.report.verdicts import explanations
from hf_rmt.spectra import SpectrumFit

Column = dict[str, Any]
STAYS_DENSE = "hollow: left dense"
"""What a hollow marker means in the figures of a compression."""

PLACE: list[Column] = [
    {"key": "name", "label": "layer", "type": "name", "help": "Name of the module."},
    {"key": "kind", "label": "type", "type": "choice", "help": "Role of the layer in its block."},
    {"key": "block", "label": "depth", "type": "count", "help": "Index of the block."},
    {
        "key": "shape",
        "label": "shape",
        "type": "text",
        "help": "Number of outputs x number of inputs.",
    },
]
VERDICT: Column = {
    "key": "verdict",
    "label": "verdict",
    "type": "choice",
    "help": "What the spectrum looks like.",
}
SPECTRUM: list[Column] = [
    {
        "key": "spikes",
        "label": "spikes",
        "type": "count",
        "help": "Directions that stand out of the noise.",
    },
    {
        "key": "energy",
        "label": "signal energy",
        "type": "share",
        "help": "Share of the squared norm of the weight that the signal holds.",
    },
    {
        "key": "distance",
        "label": "distance",
        "type": "number",
        "help": "Kolmogorov distance: the largest difference between the distribution of the noise "
        "and that of its law. Up to 0.03 the fit is good, above 0.12 the law does not hold.",
    },
]
ANALYSIS: list[Column] = [
    {
        "key": "rank",
        "label": "stable rank",
        "type": "number",
        "help": "Sum of all squared singular values, divided by the largest of them.",
    },
    {
        "key": "edge",
        "label": "edge",
        "type": "number",
        "help": "A singular value above it counts as a spike. Text and CSV files have its square.",
    },
]
COMPRESSION: list[Column] = [
    {"key": "state", "label": "state", "type": "choice", "help": "Compressed, filtered, or dense."},
    {"key": "noise", "label": "noise", "type": "choice", "help": "How the noise is stored."},
    {
        "key": "before",
        "label": "bits before",
        "type": "number",
        "help": "Bits per weight before the compression.",
    },
    {"key": "bits", "label": "bits after", "type": "number", "help": "Stored bits per weight."},
    {"key": "rank", "label": "rank", "type": "count", "help": "Directions stored as factors."},
    {
        "key": "stored",
        "label": "stored energy",
        "type": "share",
        "help": "Share of the squared norm in the stored directions.",
    },
    {
        "key": "dropped",
        "label": "dropped energy",
        "type": "share",
        "help": "Share of the squared norm that is lost.",
    },
    {
        "key": "rounding",
        "label": "rounding error",
        "type": "share",
        "help": "Squared norm of the error from rounding the noise, divided by that of the weight.",
    },
    {
        "key": "time",
        "label": "time",
        "type": "number",
        "help": "Time divided by that of the dense layer, measured when the report was made.",
    },
]
NOTES: Column = {"key": "notes", "label": "notes", "type": "text", "help": "What is unusual."}


def spectral_content(layers: Sequence[LayerSpectrum], summary: str) -> dict[str, Any]:
    """What the HTML page of an analysis shows.

    Args:
        layers: The spectra (squared singular values of the weights) of the layers.
        summary: One line about all layers.

    Returns:
        Plain JSON values, which `page_text` takes.
    """
    columns = [*PLACE, VERDICT, *SPECTRUM, *ANALYSIS, NOTES]
    spots = places([layer.name for layer in layers])
    rows = [
        {
            "name": layer.name,
            "kind": spot.kind,
            "block": spot.block,
            "shape": tables.shape_text(layer.shape),
            "verdict": str(layer.fit.phase),
            **_spectral_values(layer.fit),
            "rank": rounded(layer.fit.stable_rank),
            "edge": rounded(max(layer.fit.upper_edge, 0.0) ** 0.5),
            "notes": layer.notes,
            "hollow": layer.is_misfit,
        }
        for layer, spot in zip(layers, spots, strict=True)
    ]
    fits = {layer.name: layer.fit for layer in layers}
    return _content(columns, rows, fits, summary, facts=[], hollow=MISFIT)


def compression_content(
    plan: CompressionPlan,
    spectra: Iterable[LayerSpectrum],
    summary: str,
    facts: Sequence[tuple[str, str, str]],
) -> dict[str, Any]:
    """What the HTML page of a compression shows.

    Args:
        plan: What happens to which layer.
        spectra: The squared singular values of the weights, for layers where they are known.
        summary: Some lines about all layers.
        facts: Sizes before and after compression. Each fact is a label, the numbers, and a remark.

    Returns:
        Plain JSON values, which `page_text` takes.
    """
    known = {layer.name: layer.fit for layer in spectra}
    columns = [*PLACE, VERDICT, *COMPRESSION, *SPECTRUM, NOTES]
    spots = places([layer.name for layer in plan])
    rows = [
        {
            "name": layer.name,
            "kind": spot.kind,
            "block": spot.block,
            "shape": tables.shape_text(layer.shape),
            **_plan_values(layer),
            "verdict": layer.phase or None,
            **_spectral_values(known.get(layer.name)),
            "spikes": layer.n_spikes,
            "notes": layer.reason,
            "hollow": not layer.compressed,
            **energy_words(layer),
        }
        for layer, spot in zip(plan, spots, strict=True)
    ]
    return _content(columns, rows, known, summary, facts=facts, hollow=STAYS_DENSE)


def _content(
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    fits: dict[str, SpectrumFit],
    summary: str,
    facts: Sequence[tuple[str, str, str]],
    hollow: str,
) -> dict[str, Any]:
    """The values that the HTML page of a report shows, without table columns that have no value.

    `fits` holds the known spectra by layer; `hollow` says what a hollow marker in a figure means.
    """
    shown = [
        column
        for column in columns
        if any(row[column["key"]] not in (None, "") for row in rows) or column["type"] == "name"
    ]
    return {
        "summary": summary.splitlines(),
        "facts": [list(fact) for fact in facts],
        "verdicts": [
            {"name": name, "count": count, "text": text}
            for name, (count, text) in explanations(row["verdict"] or "" for row in rows).items()
        ],
        "columns": shown,
        "hollow": hollow,
        "layers": [
            {**row, "spectrum": spectrum_record(fits[row["name"]]) if row["name"] in fits else None}
            for row in rows
        ],
    }


def _spectral_values(fit: SpectrumFit | None) -> dict[str, Any]:
    if fit is None:
        return {"spikes": None, "energy": None, "distance": None}
    return {
        "spikes": fit.n_spikes,
        "energy": rounded(fit.signal_energy),
        "distance": rounded(fit.distance),
    }


def _plan_values(layer: LayerPlan) -> dict[str, Any]:
    """The values of a layer's row in the table, by column; an unknown value is None."""
    kept, lost = layer.compressed, layer.lost_energy
    return {
        "state": layer.state,
        "noise": layer.noise if kept else None,
        "before": rounded(layer.dense_bits / layer.entries) if layer.dense_bits else None,
        "bits": rounded(layer.bits_per_weight),
        "rank": layer.rank if kept else None,
        "stored": rounded(layer.signal_energy) if kept else None,
        "dropped": None if lost is None else rounded(lost),
        "rounding": None if layer.rounding_error is None else rounded(layer.rounding_error),
        "time": None if layer.latency is None else rounded(layer.latency),
    }
