"""What each verdict on a spectrum means, and what to do about it. No other file explains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from textwrap import wrap

from hf_rmt.spectra import Phase

VERDICTS = {
    Phase.RANDOM: (
        "The eigenvalues look like those of pure noise and no direction stands out, so store the "
        "layer in int8 or int4, and check that it was trained at all."
    ),
    Phase.SPIKED: (
        "Some directions, the spikes, stand out of the noise: store the layer in int8 or int4, "
        "which keep the spikes that are worth their bits; drop the noise only from a fine-tuned "
        "model with calibration and a size, or in training."
    ),
    Phase.HEAVY_TAILED: (
        "The noise law does not hold, so the number of spikes is a choice and not a finding: "
        "store the layer in int8, try method power-law, or set the rank yourself with method svd."
    ),
    Phase.UNEVEN: (
        "The entries differ in size from row to row, repeat, or are mostly zero, so that "
        "eigenvalues without a signal stand out: store the layer in int8, and see the notes."
    ),
    Phase.DEGENERATE: (
        "No law can be fitted, for the reason in the notes (such as zeros, a low rank or too few "
        "eigenvalues), so the layer stays dense; use method svd if its rank is low."
    ),
    Phase.LAWLESS: (
        "No noise law was fitted: either the number of directions was given (analyze the dense "
        "model with method pdb to see how many stand out of the noise), or the notes say that no "
        "noise has such a spectrum (store the layer in int8)."
    ),
}
"""One sentence for each verdict."""
UNKNOWN = (
    "This verdict is unknown to this version of hf_rmt: upgrade the package to read what it means."
)
WIDTH = 96


def explanation(phase: str) -> str:
    """One sentence: what a verdict means and what to do about it.

    Args:
        phase: The verdict, a `Phase` or its text.

    Returns:
        The sentence.

    Examples:
        >>> explanation("random").split(",")[0]
        'The eigenvalues look like those of pure noise and no direction stands out'
    """
    return {str(known): text for known, text in VERDICTS.items()}.get(str(phase), UNKNOWN)


def explanations(phases: Iterable[str]) -> dict[str, tuple[int, str]]:
    """The verdicts that occur, the most frequent first, with their number and their sentence.

    Args:
        phases: The verdict of every layer; an empty one is left out.

    Returns:
        Number of layers and sentence, by verdict.
    """
    counts = Counter(str(phase) for phase in phases if phase)
    return {phase: (count, explanation(phase)) for phase, count in counts.most_common()}


def footnotes(phases: Iterable[str]) -> str:
    """Plain text: one paragraph for each verdict that occurs; empty if none does."""
    entries = explanations(phases).items()
    paragraphs = [f"{phase} ({count}): {text}" for phase, (count, text) in entries]
    return "\n".join("\n  ".join(wrap(paragraph, WIDTH)) for paragraph in paragraphs)
