"""The README.md of a compressed model: what was done, what it costs, how to load it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rmt.plan import NOTABLE_LOSS, TERNARY, CompressionPlan, LayerPlan
from hf_rmt.report import tables
from hf_rmt.spectra import Phase

TAGS = ["hf_rmt", "random-matrix-theory", "compression"]
NOISE_WORDS = {
    "drop": "dropped",
    "ternary": "stored as ternary values (-1, 0, 1) times a scale",
    "int4": "stored as 4-bit integers",
    "int8": "stored as 8-bit integers",
    "keep": "kept as it was",
}
LAW_WORDS = (
    "Random matrix theory says which singular directions of a weight stand out of the spectrum "
    "that pure noise would have."
)
LAWLESS_WORDS = "Of every weight the largest singular directions were kept, as many as asked for."
RECORDS = ("base_model", "format_version", "layers")
FOLD = 12
"""Longer tables of layers are folded."""


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
) -> str:
    """Text of the README.md of a pushed model: YAML front matter, then Markdown.

    Args:
        plan: What was done to which layer.
        repo_id: Where the model goes, `owner/name`; None for a local folder.
        base_model: Hub id of the model that was compressed; a local path is left out.
        license: The licence of the base model, carried over as the Hub names it.
        config: The settings, as `RMTConfig.to_dict()` has them; those that the method reads.
        picture: Path of a picture of the spectra, relative to the README.md.
        sizes: Bytes of all weights, `{"before": ..., "after": ...}`.
        auto_class: The Auto class of transformers that loads the model with its head.

    Returns:
        The text, ready to be written.

    Raises:
        ValueError: If `sizes` lacks one of the two.
    """
    base_model = base_model if base_model and _is_hub_id(base_model) else None
    repo = repo_id or "path/to/this/folder"
    parts = [
        _front_matter(base_model, license),
        f"# {repo_id.split('/')[-1] if repo_id else 'Compressed model'}",
        _what_was_done(plan, base_model, config),
        f"![Signal and noise of the weights]({picture})" if picture else "",
        _what_was_lost(CompressionPlan(tuple(layer for layer in plan if layer.kind != TERNARY))),
        _size_section(plan, sizes),
        _loading(repo, auto_class, exports=not any(layer.step for layer in plan)),
        _layers(plan),
        _settings(plan, config),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(base_model: str | None, license: str | None) -> str:
    """Metadata of the Hub; JSON values are YAML, and quote what YAML would misread."""
    entries: dict[str, Any] = {"library_name": "transformers"}
    if license:
        entries["license"] = license
    if base_model:
        entries |= {"base_model": base_model, "base_model_relation": "quantized"}
    entries["tags"] = TAGS
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "---"])


def _what_was_done(plan: CompressionPlan, base_model: str | None, config: Mapping[str, Any]) -> str:
    source = f"`{base_model}`" if base_model else "A model"
    text = (
        f"{source}, compressed with hf_rmt: {len(plan.compressed)} of {len(plan)} layers "
        "were replaced."
    )
    if in_place := len(plan.changed) - len(plan.compressed):
        text += f" {in_place} stay dense, filtered in place, which saves no memory."
    ternary = [layer for layer in plan.compressed if layer.kind == TERNARY]
    spiked = [layer for layer in plan.compressed if layer.kind != TERNARY]
    words = [text, _spiked_words(spiked, config) if spiked else "", _ternary_words(ternary)]
    return " ".join(filter(None, words))


def _spiked_words(layers: Sequence[LayerPlan], config: Mapping[str, Any]) -> str:
    kinds = Counter(layer.noise for layer in layers)
    stored = " and ".join(NOISE_WORDS.get(kind, f"stored as {kind}") for kind in kinds)
    lawless = any(layer.phase == Phase.LAWLESS for layer in layers)
    ranks = sorted(layer.rank for layer in layers)
    text = (
        f"{LAWLESS_WORDS if lawless else LAW_WORDS} These directions, the signal, are stored as "
        f"low-rank factors ({ranks[0]} to {ranks[-1]} directions a layer). The rest, the noise, "
        f"is {stored}."
    )
    recovered = config.get("recover_spikes")
    if not lawless and ("drop" in kinds if recovered is None else recovered):
        text += " Signal singular values are replaced by estimates free of the noise."
    return text


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
            "activations that they replace, so that wide layers keep their kernels."
        )
    return text


def _what_was_lost(plan: CompressionPlan) -> str:
    if not plan.changed:
        return ""
    worst = max(plan.changed, key=lambda layer: layer.dropped_energy)
    text = (
        "## What was lost\n\n"
        f"{tables.percent(plan.dropped_energy)} of the squared norm of a changed layer in the "
        f"mean, at most {tables.percent(worst.dropped_energy)} (`{worst.name}`)."
    )
    if plan.dropped_energy > NOTABLE_LOSS:
        text += (
            " That is much: expect outputs to differ from those of the base model, and fine-tune "
            "before use. The signal factors are trainable."
        )
    return text


def _size_section(plan: CompressionPlan, sizes: Mapping[str, int] | None) -> str:
    rows: list[dict[str, Any]] = []
    if sizes is not None:
        if set(sizes) != {"before", "after"}:
            raise ValueError(
                f"sizes must hold the bytes 'before' and 'after', got {sorted(sizes)}; "
                "pass both or None"
            )
        ratio = sizes["after"] / sizes["before"] if sizes["before"] else None
        before, after = (f"{sizes[key] / 1e6:,.1f} MB" for key in ("before", "after"))
        rows.append({"": "all weights", "before": before, "after": after, "ratio": ratio})
    weights = sum(layer.shape[0] * layer.shape[1] for layer in plan.compressed)
    if weights:
        dense = sum(layer.dense_bits for layer in plan.compressed) / weights
        rows.append(
            {
                "": "bits per weight, compressed layers",
                "before": dense,
                "after": plan.bits_per_weight,
                "ratio": plan.size_ratio,
            }
        )
    return f"## Size\n\n{tables.markdown_table(rows)}" if rows else ""


def _loading(repo: str, auto_class: str, *, exports: bool) -> str:
    task = ""
    if auto_class == "AutoModel":
        task = "Use the Auto class of your task in place of `AutoModel`.\n\n"
    export = f"""Anywhere, after turning it into dense weights once:

```bash
hf-rmt export {repo} dense
```

"""
    return f"""## How to load it

With the package (`pip install hf_rmt`):

```python
import hf_rmt  # registers the quantization method "rmt"
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{repo}")
```

Without it, through the code in this repository, after reading that code:

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{repo}", trust_remote_code=True)
```

{export if exports else ""}{task}> **Plain loading fails, by design.** Without the package
> and without `trust_remote_code=True`, transformers raises an error instead of starting from
> random weights. Do not silence it with `ignore_mismatched_sizes=True`: the layers would then
> be random."""


def _layers(plan: CompressionPlan) -> str:
    table = tables.markdown_table([_row(layer) for layer in plan])
    if len(plan) > FOLD:
        table = f"<details>\n<summary>All {len(plan)} layers</summary>\n\n{table}\n\n</details>"
    return f"## Layers\n\n{table}" if table else ""


def _row(layer: LayerPlan) -> dict[str, Any]:
    kept = layer.compressed
    return {
        "layer": f"`{layer.name}`",
        "shape": tables.shape_text(layer.shape),
        "rank": layer.rank if kept else None,
        "noise": layer.noise if kept else "dense",
        "bits_per_weight": layer.bits_per_weight if kept else None,
        "signal_energy": layer.signal_energy,
        "dropped_energy": layer.dropped_energy if kept or layer.dropped_energy else None,
        "notes": "; ".join(filter(None, [layer.phase, layer.reason])),
    }


def _settings(plan: CompressionPlan, config: Mapping[str, Any]) -> str:
    """The settings as the user gave them, without the library's own records."""
    given = {
        key: value
        for key, value in config.items()
        if value is not None and key not in RECORDS and not isinstance(value, Mapping)
    }
    if not given:
        return ""
    several = len({(layer.kind, layer.noise) for layer in plan.compressed}) > 1
    last = "Of the last of several compressions, each of other layers.\n\n" if several else ""
    return f"## Settings\n\n{last}```json\n{json.dumps(given, indent=2)}\n```"


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub id; a path would tell the reader of someone's disk."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
