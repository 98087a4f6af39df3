"""What happens to which layer, and what it costs. Plain values only: JSON in and out."""

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
