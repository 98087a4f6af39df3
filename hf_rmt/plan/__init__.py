"""The plan of a compression: for each layer, what happens to it, its size and its loss."""

from hf_rmt.plan.outcomes import SPIKED, TERNARY, Cause, Outcome
from hf_rmt.plan.plans import NOTABLE_LOSS, CompressionPlan, LayerPlan

__all__ = [
    "NOTABLE_LOSS",
    "SPIKED",
    "TERNARY",
    "Cause",
    "CompressionPlan",
    "LayerPlan",
    "Outcome",
]
