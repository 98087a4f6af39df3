"""Joins the reports of several compressions of a model, and extracts the report of a submodule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_rmt.compression.summary import report_on
from hf_rmt.nn.layers.compressed_layer import is_compressed
from hf_rmt.plan import CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport, LayerSpectrum


def with_earlier(model: Any, report: CompressionReport) -> CompressionReport:
    """A report joined with the reports of earlier compressions, in the order of the model's layers.

    An earlier entry, the plan of one layer, is left out if the layer no longer exists. It is also
    left out if the plan says that the layer is compressed and the layer is dense now, or the
    reverse.

    Args:
        model: The model, whose parts may have reports of their own.
        report: The report of the last compression.
    """
    parts = dict(model.named_modules())
    earlier = [
        _renamed(vars(part)["compression_report"], "", f"{name}." if name else "")
        for name, part in parts.items()
        if "compression_report" in vars(part)
    ]
    plans = {plan.name: plan for made, _ in earlier for plan in made if _stands(plan, parts)}
    plans |= {plan.name: plan for plan in report.plan}
    named = tuple(plans[name] for name in parts if name in plans)
    seen = {one.name: one for _, found in earlier for one in found}
    seen |= {one.name: one for one in report.spectra or ()}
    known = [seen[plan.name] for plan in named if plan.name in seen]
    return report_on(model, CompressionPlan(named), known)


def report_below(report: CompressionReport, prefix: str, part: Any) -> CompressionReport:
    """The report on a part of a model, with the names that the layers have inside the part.

    Args:
        report: The report on the whole model.
        prefix: Name of the part in `model.named_modules()`; empty for the model itself.
        part: The part, which is a module of the model.
    """
    return report_on(part, *_renamed(report, f"{prefix}.", "")) if prefix else report


def _renamed(
    report: CompressionReport, old: str, new: str
) -> tuple[CompressionPlan, list[LayerSpectrum]]:
    """Plans and squared singular values of the layers whose names begin with `old`.

    In these names, `new` replaces `old`. With old="" and new="bert.", "pooler" becomes
    "bert.pooler".
    """
    plans = tuple(
        replace(plan, name=new + plan.name.removeprefix(old))
        for plan in report.plan
        if plan.name.startswith(old)
    )
    spectra = [
        replace(layer, name=new + layer.name.removeprefix(old))
        for layer in report.spectra or ()
        if layer.name.startswith(old)
    ]
    return CompressionPlan(plans), spectra


def _stands(plan: LayerPlan, parts: Mapping[str, Any]) -> bool:
    """Whether a plan still holds: its layer exists, and is compressed or dense as planned."""
    return plan.name in parts and plan.compressed == is_compressed(parts[plan.name])
