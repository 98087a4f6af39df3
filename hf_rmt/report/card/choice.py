"""How the directions of a compressed model were chosen, in words for the model card.

A direction is a pair of singular vectors of a weight, with the singular value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rmt.plan import LayerPlan
from hf_rmt.report import tables
from hf_rmt.spectra import Phase

SPECTRUM = "stand out of the spectrum that pure noise would have."
INPUTS = (
    "The inputs of calibration batches decide which directions these are, so that the outputs of "
    "the layers change little."
)


def choice_words(layers: Sequence[LayerPlan], config: Mapping[str, Any]) -> str:
    """How many singular directions (pairs of singular vectors) each weight keeps, and which ones.

    Args:
        layers: The layers that are stored as low-rank factors and noise (the rest of the weight).
        config: The settings of the method. If they have an entry `size`, or `calibrated` is true,
            calibration batches decided which directions are kept.

    Returns:
        One or two sentences.
    """
    calibrated = bool(config.get("calibrated") or config.get("size") is not None)
    if by_law(layers, config):
        asks = "how many" if calibrated else "which"
        number = f"Random matrix theory says {asks} singular directions of a weight {SPECTRUM}"
        return f"{number} {INPUTS}" if calibrated else number
    many = _how_many(config)
    if not many:
        asks = "how many" if calibrated else "which"
        method = config.get("method", "unknown")
        number = f"The method `{method}` says {asks} singular directions of a weight are kept."
        return f"{number} {INPUTS}" if calibrated else number
    return f"{many} {INPUTS if calibrated else 'These are the largest ones.'}"


def by_law(layers: Sequence[LayerPlan], config: Mapping[str, Any]) -> bool:
    """Whether a law decided how many singular directions at least one layer keeps.

    A singular direction is a pair of singular vectors of a weight. A law is the density that theory
    predicts for the squared singular values of noise.
    """
    return not _how_many(config) and any(layer.phase != Phase.LAWLESS for layer in layers)


def _how_many(config: Mapping[str, Any]) -> str:
    """A sentence for the card: how many singular directions of a weight the settings ask for.

    A singular direction is a pair of singular vectors. The text is empty if no setting asks for a
    number.
    """
    if (size := config.get("size")) is not None:
        return (
            f"Together, the layers keep {tables.percent(size)} of their parameters. A layer that "
            "matters more to the outputs keeps more of its singular directions."
        )
    if (rank := config.get("rank")) is not None:
        kept = tables.counted(rank, "singular direction")
        return f"Every weight keeps {kept}, or all of them if it has fewer."
    if (energy := config.get("energy")) is not None:
        share = tables.percent(energy)
        return (
            f"Every weight keeps as many singular directions as hold {share} of its squared norm."
        )
    if (fraction := config.get("fraction")) is not None:
        return f"Every weight keeps {tables.percent(fraction)} of its singular directions."
    return ""
