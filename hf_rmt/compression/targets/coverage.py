"""Adds to a report the layers that stay dense (are not compressed) on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from hf_rmt.compression.targets.left_dense import LeftDense
from hf_rmt.compression.targets.selection import kept_layers
from hf_rmt.nn.counterparts import matrix_shape
from hf_rmt.nn.dense_matrix import has_matrix
from hf_rmt.plan import CompressionPlan, LayerPlan, Outcome
from hf_rmt.report import CompressionReport
from hf_rmt.settings import CompressionSettings


def kept_plans(model: nn.Module, settings: CompressionSettings) -> list[LayerPlan]:
    """Make a `LayerPlan` for each selected layer that has to stay dense (not compressed).

    The reason is how the model uses the layer; the plan states it.

    Args:
        model: The model before it is compressed; its tensors may be on the meta device.
        settings: The method and its options.
    """
    found = kept_layers(model, settings)
    return [_kept_plan(name, model.get_submodule(name), why) for name, why in found.items()]


def with_kept(
    report: CompressionReport, kept: Iterable[LayerPlan], model: nn.Module
) -> CompressionReport:
    """A copy of a report that also lists layers which are not compressed, in the model's order.

    Args:
        report: The report on the other layers.
        kept: Plans of the layers that are not compressed, as `kept_plans` gives them.
        model: The model that the report is about.
    """
    plans = {plan.name: plan for plan in (*kept, *report.plan)}
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    ordered = sorted(plans.values(), key=lambda plan: places[plan.name])
    return replace(report, plan=CompressionPlan(tuple(ordered)))


def _kept_plan(name: str, layer: Any, why: LeftDense) -> LayerPlan:
    rows, columns = matrix_shape(layer) if has_matrix(layer) else tuple(layer.weight.shape)
    bits = 8 * layer.weight.element_size() * rows * columns
    return LayerPlan(
        name=name,
        shape=(rows, columns),
        outcome=Outcome.KEPT,
        bits=bits,
        dense_bits=bits,
        reason=why.reason,
        cause=why.cause,
    )
