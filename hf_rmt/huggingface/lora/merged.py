"""The record of a model after adapters were merged into the signals of its layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_rmt.huggingface.record import CompressionRecord
from hf_rmt.nn.spiked import SpikedLinear
from hf_rmt.nn.stores.noise_store import stored_bits
from hf_rmt.plan import CompressionPlan, LayerPlan


def record_ranks(model: Any) -> None:
    """Write the ranks that layers have now into the record of a model that is about to be saved.

    Merging an adapter appends its directions to the signal, which the record knows nothing of.

    Args:
        model: A transformers model with a quantizer of ours.
    """
    config = model.hf_quantizer.quantization_config
    if not isinstance(config, CompressionRecord) or config.layers is None:
        return
    plan = CompressionPlan.from_dict(config.layers)
    config.layers = CompressionPlan(tuple(_of_now(model, layer) for layer in plan)).to_dict()


def _of_now(model: Any, plan: LayerPlan) -> LayerPlan:
    layer = model.get_submodule(plan.name)
    if not isinstance(layer, SpikedLinear) or layer.rank == plan.rank:
        return plan
    bits = stored_bits(plan.shape, layer.rank, plan.noise, dtype=layer.weight.dtype)
    return replace(plan, rank=layer.rank, bits=bits)
