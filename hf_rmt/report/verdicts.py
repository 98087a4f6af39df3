"""What each verdict on the spectrum (eigenvalues) of a weight means, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from textwrap import wrap

from hf_rmt.spectra import Phase

VERDICTS = {
    Phase.RANDOM: (
        "The eigenvalues look like those of pure noise and no direction stands out, so check that "
        "the layer was trained at all, and store it in int8 or int4."
    ),
    Phase.SPIKED: (
        "Some directions, the spikes, stand out of the noise: store the layer in int8 or int4; "
        "drop the noise only from a fine-tuned model (with calibration and a size), from a "
        "network trained from nothing, or during training."
    ),
    Phase.HEAVY_TAILED: (
        "The noise law does not hold, so the number of spikes is a choice and not a finding: "
        "store the layer in int8, try method power-law, or set the rank yourself with method svd."
    ),
    Phase.UNEVEN: (
        "The rows differ in size or repeat each other, or most entries are zero, so that "
        "eigenvalues stand out although there is no signal: see the notes, and store the layer in "
        "int8."
    ),
    Phase.DEGENERATE: (
        "No law can be fitted, for the reason in the notes (such as zeros, a low rank or too few "
        "eigenvalues), so the layer stays dense; use method svd if its rank is low."
    ),
    Phase.LAWLESS: (
        "No noise law was fitted, for one of two reasons: the number of directions was given "
        "(analyze the dense model with method pdb to see how many stand out of the noise), or the "
        "notes say that noise cannot have such a spectrum (store the layer in int8)."
    ),
}
"""For each verdict on the spectrum of a weight, a sentence: what it means and what to do."""
UNKNOWN = (
    "This verdict is unknown to this version of hf_rmt: upgrade the package to read what it means."
)
WIDTH = 96


def explanation(phase: str) -> str:
    """One sentence: what a verdict on the spectrum of a weight means, and what to do.

    Args:
        phase: The verdict, a `Phase` or the text of one, such as `random`.

    Returns:
        The sentence.

    Examples:
        >>> explanation("random").split(",")[0]
        'The eigenvalues look like those of pure noise and no direction stands out'
    """
    return {str(known): text for known, text in VERDICTS.items()}.get(str(phase), UNKNOWN)


def explanations(phases: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Count and explain the verdicts on spectra that occur, the most frequent first.

    Args:
        phases: The verdict of every layer; an empty one is left out.

    Returns:
        For each verdict, the number of layers that have it, and the sentence of `explanation`.
    """
    counts = Counter(str(phase) for phase in phases if phase)
    return {phase: (count, explanation(phase)) for phase, count in counts.most_common()}


def footnotes(phases: Iterable[str]) -> str:
    """Explain each different verdict of `phases` in one paragraph of plain text.

    A verdict says what the spectrum of a weight looks like; see `explanation`. If there is no
    verdict, the text is empty.
    """
    entries = explanations(phases).items()
    paragraphs = [f"{phase} ({count}): {text}" for phase, (count, text) in entries]
    return "\n".join("\n  ".join(wrap(paragraph, WIDTH)) for paragraph in paragraphs)
