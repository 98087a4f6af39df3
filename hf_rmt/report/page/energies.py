"""What became of the squared norm of a weight, in words for the page."""

from __future__ import annotations

from typing import Any

from hf_rmt.plan import SPIKED, LayerPlan
from hf_rmt.report.tables import percent

WHOLE = 1e-6
"""How far from 1 a sum of shares may be that is meant to be the whole."""


def energy_words(layer: LayerPlan) -> dict[str, Any]:
    """A sentence on the squared norm, and the shares of a bar.

    The shares are a part of the whole only if the stored directions are those of the weight itself.
    Calibration and the recovery of spikes change them. Then the sentence gives the error alone.

    Args:
        layer: What happens to a layer.

    Returns:
        `energies`, the sentence, empty for a layer without a loss, and `shares`, names and numbers
        that sum to 1, or None.
    """
    stored, lost = layer.signal_energy, layer.lost_energy or 0.0
    spiked = layer.compressed and layer.kind == SPIKED
    if spiked and layer.noise == "drop" and abs(stored + lost - 1) < WHOLE:
        text = f"Of the squared norm, {percent(stored)} is stored and {percent(lost)} is lost."
        return {"energies": text, "shares": [["stored", stored], ["lost", lost]]}
    words = []
    if spiked and layer.noise != "drop":
        words.append(
            f"The stored directions have {percent(stored)} of the squared norm. The rest is stored "
            f"as noise ({layer.noise})."
        )
    if lost > 0:
        words.append(f"The weight changed by {percent(lost)} of its squared norm.")
    if layer.rounding_error is not None:
        words.append(f"Rounding changes {percent(layer.rounding_error)} of the squared norm.")
    return {"energies": " ".join(words), "shares": None}
