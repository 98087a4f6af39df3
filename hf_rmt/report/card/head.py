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
        value: Value of the compressed model.
        before: Value of the model before compression; None if it was not measured.
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
    """Data by which the Hub lists a model. Unknown values are left out.

    Args:
        pipeline_tag: Task of the pipeline that runs the model, such as `text-classification`.
        language: Codes of the languages, such as `en`.
        datasets: Ids of the data sets that the model was trained on.
        metrics: Ids of the metrics; those of the evaluations are added.
        evaluations: The measured values, which become the model-index.
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
            Plain values, without the unknown ones.
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
    """Metadata for the Hub. JSON values are valid YAML, and their quotes prevent misreading.

    Args:
        metadata: Data by which the Hub lists the model.
        title: Name of the model.
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
    entries |= metadata.entries(title)
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "---"])


def evaluation_section(evaluations: Sequence[Evaluation]) -> str:
    """A section with a table of the measured values; empty if there are none."""
    table = tables.markdown_table([entry.to_row() for entry in evaluations])
    return f"## Evaluation\n\n{table}" if table else ""


def is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub id. A path cannot; it would show the reader someone's folders."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
