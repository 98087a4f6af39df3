"""The README.md of a compressed model: what was done, what this costs, how to load the model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rmt.plan import NOTABLE_LOSS, TERNARY, CompressionPlan, LayerPlan
from hf_rmt.report import tables
from hf_rmt.report.card.choice import by_law, choice_words
from hf_rmt.report.card.head import CardMetadata, front_matter, is_hub_id
from hf_rmt.report.card.loading import loading_section
from hf_rmt.report.sizes import COVERED, Sizes
from hf_rmt.report.verdicts import explanations

NOISE_WORDS = {
    "drop": "dropped",
    "ternary": "stored as ternary values (-1, 0, 1) times a scale",
    "int4": "stored as 4-bit integers",
    "int8": "stored as 8-bit integers",
    "keep": "kept as it was",
}
RECORDS = ("base_model", "format_version", "layers", "size", "calibrated")
NO_METADATA = CardMetadata()
FOLD = 12
"""A table of more layers than this is hidden in the README.md until the reader opens it."""


def model_card(
    plan: CompressionPlan,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    config: Mapping[str, Any],
    picture: str | None = None,
    sizes: Mapping[str, int] | None = None,
    auto_class: str = "AutoModel",
    metadata: CardMetadata = NO_METADATA,
    processor: str | None = None,
    model_parameters: int | None = None,
) -> str:
    """Text of the README.md of a pushed model: YAML front matter, then Markdown.

    Args:
        plan: What was done to which layer.
        repo_id: Where the model goes, `owner/name`; None for a local folder.
        base_model: Hub id of the model that was compressed; a local path is left out.
        license: The licence of the base model, under the name that the Hub gives it.
        config: The settings that the method reads, as `RMTConfig.to_dict()` gives them.
        picture: Path of a picture of the spectra (squared singular values of the weights), relative
            to the README.md.
        sizes: Bytes of all weights in their file, `{"before": ..., "after": ...}`.
        auto_class: The Auto class of transformers that loads the model with the task head.
        metadata: Task, languages, data sets and metrics, for the Hub.
        processor: The Auto class of the tokenizer or processor in the repository, such as
            `AutoTokenizer`; None if it has none.
        model_parameters: Number of parameters of the whole model, so that the card can give the
            share of the compressed layers.

    Returns:
        The text, ready to be written.

    Raises:
        ValueError: If `sizes` does not hold both `before` and `after`.
    """
    base_model = base_model if base_model and is_hub_id(base_model) else None
    repo = repo_id or "path/to/this/folder"
    title = _title(repo_id, base_model)
    known = Sizes(_pair(sizes), model_parameters)
    parts = [
        front_matter(metadata, base_model=base_model, license=license),
        f"# {title}",
        _what_was_done(plan, base_model, config),
        f"![Signal and noise of the weights]({picture})" if picture else "",
        _what_was_lost(CompressionPlan(tuple(layer for layer in plan if layer.kind != TERNARY))),
        _size_section(plan, known),
        loading_section(repo, auto_class, processor, exports=not any(layer.step for layer in plan)),
        _layers(plan),
        _verdicts(plan),
        _settings(plan, config),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _title(repo_id: str | None, base_model: str | None) -> str:
    """The title of the README.md: the name of the repository, or the name of the base model."""
    if repo_id:
        return repo_id.split("/")[-1]
    return f"{base_model.split('/')[-1]}, compressed" if base_model else "Compressed model"


def _what_was_done(plan: CompressionPlan, base_model: str | None, config: Mapping[str, Any]) -> str:
    source = f"`{base_model}`" if base_model else "A model"
    text = (
        f"{source}, compressed with hf_rmt: {len(plan.compressed)} of {len(plan)} layers "
        "were replaced."
    )
    if in_place := len(plan.in_place):
        text += (
            f" {in_place} stay dense, filtered in place: their weights changed, but save no memory."
        )
    ternary = [layer for layer in plan.compressed if layer.kind == TERNARY]
    spiked = [layer for layer in plan.compressed if layer.kind != TERNARY]
    words = [text, _spiked_words(spiked, config) if spiked else "", _ternary_words(ternary)]
    return " ".join(filter(None, words))


def _spiked_words(layers: Sequence[LayerPlan], config: Mapping[str, Any]) -> str:
    kinds = Counter(layer.noise for layer in layers)
    stored = " and ".join(NOISE_WORDS.get(kind, f"stored as {kind}") for kind in kinds)
    ranks = sorted({layer.rank for layer in layers})
    each = tables.counted(ranks[-1], "direction")
    counts = f"{each} in each layer" if len(ranks) == 1 else f"{ranks[0]} to {each} a layer"
    zeros = any(layer.nonzero is not None for layer in layers)
    sparse = ", with zeros in their weak rows and columns" if zeros else ""
    return (
        f"{choice_words(layers, config)} The chosen directions, the signal, are stored as low-rank "
        f"factors ({counts}){sparse}. The rest, the noise, is {stored}. "
        f"{_recovery_words(layers, config)}"
    ).rstrip()


def _recovery_words(layers: Sequence[LayerPlan], config: Mapping[str, Any]) -> str:
    """The sentence of the card that says: the signal's singular values were corrected for noise.

    The noise is the weight minus its low-rank signal, and increases the signal's singular values.
    The sentence is empty if the method did not correct them.
    """
    recovers = config.get("recover_spikes")
    if recovers is None:
        recovers = any(layer.noise == "drop" for layer in layers)
    if not recovers or config.get("calibrated") or not by_law(layers, config):
        return ""
    return "The singular values of the signal are replaced by estimates free of the noise."


def _ternary_words(layers: Sequence[LayerPlan]) -> str:
    if not layers:
        return ""
    steps = sum(layer.step is not None for layer in layers)
    text = (
        f"The weights of {tables.counted(len(layers), 'layer')} are -1, 0 and 1, five of them in a "
        "byte, with a scale for each row."
    )
    if steps:
        text += (
            f" The activations after {steps} of them are steps with the Gaussian moments of the "
            "activations that they replace: the same means over normally distributed inputs. With "
            "these, a wide network keeps its kernel: a matrix that says how similar the network "
            "finds two inputs."
        )
    placed = [layer.step for layer in layers if layer.step is not None]
    called = {str(step["function"]) for step in placed if "function" in step}
    if called:
        names = ", ".join(sorted(called))
        text += (
            f" Where the model calls its activation as a function ({names}), the step is in the "
            "layer. The step passes on only inputs for which the function returns the step's "
            "values."
        )
    return text


def _what_was_lost(plan: CompressionPlan) -> str:
    if not plan.changed:
        return ""
    worst = max(plan.changed, key=lambda layer: layer.dropped_energy)
    text = "## What was lost\n\nNothing was dropped."
    if worst.dropped_energy > 0:
        text = (
            f"## What was lost\n\nA changed layer lost {tables.percent(plan.dropped_energy)} of "
            f"its squared norm on average, and at most {tables.percent(worst.dropped_energy)} "
            f"({tables.code(worst.name)})."
        )
    if plan.dropped_energy > NOTABLE_LOSS:
        text += (
            " That is much: expect outputs to differ from those of the base model, and fine-tune "
            "before use. The signal factors are trainable."
        )
    return f"{text} {_rounding_words(plan)}".rstrip()


def _rounding_words(plan: CompressionPlan) -> str:
    """A sentence for the card: how much the rounding of the noise changed the weights.

    The noise is a weight minus its low-rank signal. The sentence gives the relative error, and the
    cosine of the angle between a weight and its stored form. It is empty if nothing was rounded.
    """
    rounded = [layer for layer in plan if layer.rounds]
    if not rounded:
        return ""
    kinds = " and ".join(dict.fromkeys(layer.noise for layer in rounded))
    known = [layer for layer in rounded if layer.rounding_error is not None]
    if not known:
        return f"Storing the noise in {kinds} rounds it. That error was not measured."
    mean = sum(layer.rounding_error or 0.0 for layer in known) / len(known)
    worst = max(known, key=lambda layer: layer.rounding_error or 0.0)
    return (
        f"Storing the noise in {kinds} rounds it: a weight and its stored form differ by "
        f"{tables.percent(mean**0.5)} of the weight's norm (root mean square over the layers; the "
        f"two have a cosine {_about((1 - min(mean, 1.0)) ** 0.5)}), and by at most "
        f"{tables.percent((worst.rounding_error or 0.0) ** 0.5)} ({tables.code(worst.name)})."
    )


def _about(cosine: float) -> str:
    """A cosine as words, such as `of about 0.98765`; a value below 1 is never shown as 1."""
    return "above 0.99999" if 0.99999 < cosine < 1 else f"of about {cosine:.5f}"


def _pair(sizes: Mapping[str, int] | None) -> tuple[int, int] | None:
    if sizes is None:
        return None
    if set(sizes) != {"before", "after"}:
        raise ValueError(
            f"sizes must hold the bytes 'before' and 'after', got {sorted(sizes)}; "
            "pass both or None"
        )
    return sizes["before"], sizes["after"]


def _size_section(plan: CompressionPlan, sizes: Sizes) -> str:
    """The section on sizes: the file, bits per weight, and the share of the model that changed."""
    rows = [_bytes_row("all weights in the file", sizes.file)]
    weights = sum(layer.entries for layer in plan.compressed)
    if weights:
        dense = sum(layer.dense_bits for layer in plan.compressed) / weights
        bits = {"before": dense, "after": plan.bits_per_weight, "ratio": plan.size_ratio}
        rows.append({"": "bits per weight, compressed layers", **bits})
    table = tables.markdown_table([row for row in rows if row])
    covered = sizes.line(plan, COVERED)
    found = [table, f"{covered}." if covered else ""]
    return "\n\n".join(["## Size", *filter(None, found)]) if any(found) else ""


def _bytes_row(name: str, sizes: tuple[int, int] | None) -> dict[str, Any]:
    if sizes is None:
        return {}
    before, after = (tables.size_text(size) for size in sizes)
    ratio = sizes[1] / sizes[0] if sizes[0] else None
    return {"": name, "before": before, "after": after, "ratio": ratio}


def _layers(plan: CompressionPlan) -> str:
    table = tables.markdown_table([_row(layer) for layer in plan])
    if len(plan) > FOLD:
        table = f"<details>\n<summary>All {len(plan)} layers</summary>\n\n{table}\n\n</details>"
    return f"## Layers\n\n{table}" if table else ""


def _verdicts(plan: CompressionPlan) -> str:
    found = explanations(layer.phase for layer in plan).items()
    lines = [
        f"- **{phase}** ({tables.counted(count, 'layer')}): {text}"
        for phase, (count, text) in found
    ]
    return "\n".join(["## What the verdicts mean\n", *lines]) if lines else ""


def _row(layer: LayerPlan) -> dict[str, Any]:
    kept = layer.compressed
    return {
        "layer": tables.code(layer.name),
        "shape": tables.shape_text(layer.shape),
        "rank": layer.rank if kept else None,
        "noise": layer.noise if kept else layer.state,
        "bits_per_weight": layer.bits_per_weight if kept else None,
        "signal_energy": tables.Share(layer.signal_energy),
        "dropped_energy": _share(layer.lost_energy),
        "rounding_error": _share(layer.rounding_error),
        "notes": "; ".join(filter(None, [layer.phase, layer.reason])),
    }


def _settings(plan: CompressionPlan, config: Mapping[str, Any]) -> str:
    """The section of the card with the user's settings, as JSON; empty if there are none.

    Entries that the library itself adds to `config` (see `RECORDS`) are left out.
    """
    given = {key: value for key, value in config.items() if not (value is None or key in RECORDS)}
    if not given:
        return ""
    several = len({(layer.kind, layer.noise) for layer in plan.compressed}) > 1
    last = "These are the settings of the last of several compressions.\n\n" if several else ""
    return f"## Settings\n\n{last}```json\n{json.dumps(given, indent=2)}\n```"


def _share(value: float | None) -> tables.Share | None:
    return None if value is None else tables.Share(value)
