"""Says in words, for an HTML page, how much of a weight's squared norm is stored or lost."""

from __future__ import annotations

from typing import Any

from hf_rmt.plan import SPIKED, LayerPlan
from hf_rmt.report.tables import percent

WHOLE = 1e-6
"""The stored and the lost share of a squared norm count as the whole norm if their sum differs from
1 by less than this."""


def energy_words(layer: LayerPlan) -> dict[str, Any]:
    """Say how much of a weight's squared norm is stored or lost, and give a bar that shows it.

    There is a bar only if no noise is stored, and if the stored and the lost share sum to 1. They
    do if singular values and vectors of the weight are stored unchanged. Calibration changes the
    vectors. The recovery of spikes (an estimate of the signal without noise) changes the values.

    Args:
        layer: What happens to a layer.

    Returns:
        A mapping with two keys. `energies` holds the sentences; it is empty if there is nothing to
        say. `shares` holds the names and sizes of the parts of the bar, which sum to 1; it is None
        if there is no bar.
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
