"""The front matter of a model card: what the Hub reads to list, filter and load a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TAGS = ["hf_rmt", "random-matrix-theory", "compression"]


@dataclass(frozen=True)
class CardMetadata:
    """Data by which the Hub lists a model. Unknown values are left out.

    Args:
        pipeline_tag: Task of the pipeline that runs the model, such as `text-classification`.
        language: Codes of the languages, such as `en`.
        datasets: Ids of the data sets that the model was trained on.
        metrics: Ids of the metrics that measure the model, such as `accuracy`.
    """

    pipeline_tag: str | None = None
    language: Sequence[str] = ()
    datasets: Sequence[str] = ()
    metrics: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("language", "datasets", "metrics"):
            if isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{name} must be a list of texts, got the text {getattr(self, name)!r}; "
                    f"pass [{getattr(self, name)!r}]"
                )

    def entries(self) -> dict[str, Any]:
        """The entries of the front matter, by the Hub's names; unknown values are left out."""
        found: dict[str, Any] = {
            "pipeline_tag": self.pipeline_tag,
            "language": list(self.language),
            "datasets": list(self.datasets),
            "metrics": list(self.metrics),
        }
        return {key: value for key, value in found.items() if value}


def front_matter(metadata: CardMetadata, *, base_model: str | None, license: str | None) -> str:
    """Metadata for the Hub as YAML. Each value is written as JSON, so YAML cannot misread it.

    Args:
        metadata: Data by which the Hub lists the model.
        base_model: Hub id of the model that was compressed.
        license: The licence, as the Hub names it.

    Returns:
        The lines, with a line of `---` before and after them.
    """
    entries: dict[str, Any] = {"library_name": "transformers"}
    if license:
        entries["license"] = license
    if base_model:
        entries |= {"base_model": base_model, "base_model_relation": "quantized"}
    entries["tags"] = TAGS
    entries |= metadata.entries()
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "---"])


def is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub id. A local path cannot be one, and a card must not show it."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
