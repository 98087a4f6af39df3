"""The plan of a compression: what happens to each layer, its size, and what its weight loses."""

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
