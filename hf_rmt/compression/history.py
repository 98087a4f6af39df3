"""Joins the reports of several compressions of a model, and takes out the report of a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_rmt.nn.compressed_layer import is_compressed
from hf_rmt.plan import CompressionPlan, LayerPlan
from hf_rmt.report import CompressionReport, SpectralReport


def with_earlier(model: Any, report: CompressionReport) -> CompressionReport:
    """A report joined with those of earlier compressions, in the order of the model's layers.

    An earlier entry is left out if its layer no longer exists, or was made dense after that.

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
    plans = {plan.name: plan for one in earlier for plan in one.plan if _stands(plan, parts)}
    plans |= {plan.name: plan for plan in report.plan}
    named = tuple(plans[name] for name in parts if name in plans)
    seen = {part.name: part for one in (*earlier, report) for part in one.spectra or ()}
    known = tuple(seen[plan.name] for plan in named if plan.name in seen)
    return replace(
        report, plan=CompressionPlan(named), spectra=SpectralReport(known) if known else None
    )


def report_below(report: CompressionReport, prefix: str) -> CompressionReport:
    """The part of a report on the layers below a module, with their names inside the module.

    Args:
        report: The report on the whole model.
        prefix: Runtime name of the module; empty for the model itself.
    """
    return _renamed(report, f"{prefix}.", "") if prefix else report


def _renamed(report: CompressionReport, old: str, new: str) -> CompressionReport:
    """The part of a report on layers with one prefix, with the prefix replaced by another."""
    plans = tuple(
        replace(plan, name=new + plan.name.removeprefix(old))
        for plan in report.plan
        if plan.name.startswith(old)
    )
    spectra = tuple(
        replace(layer, name=new + layer.name.removeprefix(old))
        for layer in report.spectra or ()
        if layer.name.startswith(old)
    )
    return CompressionReport(CompressionPlan(plans), SpectralReport(spectra) if spectra else None)


def _stands(plan: LayerPlan, parts: Mapping[str, Any]) -> bool:
    """Whether a layer still exists and is what a plan made of it."""
    return plan.name in parts and plan.compressed == is_compressed(parts[plan.name])
