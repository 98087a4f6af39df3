"""The front matter of a model card: what the Hub reads to list, filter and load a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_rmt.report import tables

TAGS = ["hf_rmt", "random-matrix-theory", "compression"]


@dataclass(frozen=True)
class Evaluation:
    """One measured value of one metric.

    Args:
        task: Task as the Hub names it, such as `text-classification`.
        dataset: Id of the data set on the Hub, such as `glue`.
        metric: Id of the metric, such as `accuracy`.
        value: What the compressed model reaches.
        before: What the model reached before it was compressed; None if it was not measured.
        dataset_name: Name of the data set for readers; None takes its id.
        split: Part of the data set; None if it has no parts.
    """

    task: str
    dataset: str
    metric: str
    value: float
    before: float | None = None
    dataset_name: str | None = None
    split: str | None = None

    def to_index(self) -> dict[str, Any]:
        """An entry of `results` in the Hub's model-index."""
        dataset = {"name": self.dataset_name or self.dataset, "type": self.dataset}
        if self.split:
            dataset["split"] = self.split
        metric = {"type": self.metric, "value": self.value}
        return {"task": {"type": self.task}, "dataset": dataset, "metrics": [metric]}

    def to_row(self) -> dict[str, Any]:
        """A line of the table in the card."""
        return {
            "task": self.task,
            "dataset": self.dataset_name or self.dataset,
            "split": self.split,
            "metric": self.metric,
            "before": self.before,
            "after": self.value,
        }


@dataclass(frozen=True)
class CardMetadata:
    """What the Hub lists a model under. What is not known is left out.

    Args:
        pipeline_tag: Task of the pipeline that runs the model, such as `text-classification`.
        language: Codes of the languages, such as `en`.
        datasets: Ids of the data sets that the model was trained on.
        metrics: Ids of the metrics; those of the evaluations are added.
        evaluations: What was measured; they become the model-index.
    """

    pipeline_tag: str | None = None
    language: Sequence[str] = ()
    datasets: Sequence[str] = ()
    metrics: Sequence[str] = ()
    evaluations: Sequence[Evaluation] = ()

    def __post_init__(self) -> None:
        for name in ("language", "datasets", "metrics"):
            if isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{name} must be a list of texts, got the text {getattr(self, name)!r}; "
                    f"pass [{getattr(self, name)!r}]"
                )

    def entries(self, title: str) -> dict[str, Any]:
        """The entries of the front matter, in the Hub's own names.

        Args:
            title: Name of the model in the model-index.

        Returns:
            Plain values; only what is known.
        """
        metrics = dict.fromkeys([*self.metrics, *(entry.metric for entry in self.evaluations)])
        found: dict[str, Any] = {
            "pipeline_tag": self.pipeline_tag,
            "language": list(self.language),
            "datasets": list(self.datasets),
            "metrics": list(metrics),
        }
        if self.evaluations:
            results = [entry.to_index() for entry in self.evaluations]
            found["model-index"] = [{"name": title, "results": results}]
        return {key: value for key, value in found.items() if value}


def front_matter(
    metadata: CardMetadata, *, title: str, base_model: str | None, license: str | None
) -> str:
    """Metadata of the Hub. JSON values are YAML, and quote what YAML would misread.

    Args:
        metadata: What the model is listed under.
        title: Name of the model.
        base_model: Hub id of the model that was compressed.
        license: The licence, as the Hub names it.

    Returns:
        The lines between two rules.
    """
    entries: dict[str, Any] = {"library_name": "transformers"}
    if license:
        entries["license"] = license
    if base_model:
        entries |= {"base_model": base_model, "base_model_relation": "quantized"}
    entries["tags"] = TAGS
    entries |= metadata.entries(title)
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "---"])


def evaluation_section(evaluations: Sequence[Evaluation]) -> str:
    """A table of what was measured; empty if nothing was."""
    table = tables.markdown_table([entry.to_row() for entry in evaluations])
    return f"## Evaluation\n\n{table}" if table else ""


def is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub id; a path would tell the reader of someone's disk."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
