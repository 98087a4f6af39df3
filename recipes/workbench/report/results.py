"""Results of several methods on several tasks, beside published numbers: a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from workbench.writing import written

from hf_rmt.report import records, tables


@dataclass(frozen=True)
class Result:
    """What one method reached on one task.

    Args:
        method: Name of the method; it is the row of the table.
        column: Name of the task, and of the split if there are several.
        values: The metric, one value for each seed.
        difference: Difference from the first row, in the unit of the metric; None for that row.
        interval: Lowest and highest difference that the data allow; None if it was not computed.
        published: What the publication reports for this method and task; None if nothing.
        note: What the reader should know about this number.

    Raises:
        ValueError: If there is no value, or if the interval begins with its higher end.
    """

    method: str
    column: str
    values: tuple[float, ...]
    difference: float | None = None
    interval: tuple[float, float] | None = None
    published: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(
                f"{self.method!r} has no values on {self.column!r}; leave the result out"
            )
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval must be (low, high), got {self.interval}; swap the two")

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values)

    def to_row(self) -> dict[str, Any]:
        """Plain values, one row of the CSV."""
        low, high = self.interval or (None, None)
        return {
            "method": self.method,
            "column": self.column,
            "mean": self.mean,
            "seeds": len(self.values),
            "values": " ".join(f"{value:.6g}" for value in self.values),
            "difference": self.difference,
            "low": low,
            "high": high,
            "published": self.published,
            "note": self.note,
        }


@dataclass(frozen=True)
class ResultsTable:
    """Results with methods in the rows and tasks in the columns, both in the order of `results`.

    Args:
        results: The results. The method of the first result is the one that others are compared to.
        title: Title of the table.
        metric: Name of the metric, with its unit if it has one.
        level: Confidence level of the intervals, which the text below the table names.
        differences: How the setting differs from that of the published numbers: subset, epochs,
            size of the model.
        notes: What else the reader should know.

    Raises:
        ValueError: If there is no result, or if two have the same method and column.

    Examples:
        >>> base = Result("base", "task", (0.8, 0.9), published=0.7)
        >>> ours = Result("filtered", "task", (0.9, 0.9), 0.05, (0.01, 0.09))
        >>> print(ResultsTable((base, ours)).to_markdown())
        | method | task | task, published |
        | --- | --- | --- |
        | base | 0.8500 | 0.7000 |
        | filtered | 0.9000 (+0.0500 [+0.0100, +0.0900]) | - |
        <BLANKLINE>
        accuracy, mean over 2 seeds; in brackets the difference to base and its 95 % interval.
    """

    results: tuple[Result, ...]
    title: str = ""
    metric: str = "accuracy"
    level: float = 0.95
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("a table needs at least one result, got 0; add that of the base")
        if len({(cell.method, cell.column) for cell in self.results}) < len(self.results):
            raise ValueError("two results have the same method and column; pool their values")

    @property
    def methods(self) -> list[str]:
        """Names of the rows."""
        return list(dict.fromkeys(result.method for result in self.results))

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(result.column for result in self.results))

    def __str__(self) -> str:
        return self.to_markdown()

    def cell(self, method: str, column: str) -> Result | None:
        """The result of a method on a task, None if there is none."""
        cells = (cell for cell in self.results if (cell.method, cell.column) == (method, column))
        return next(cells, None)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The table in Markdown, followed by notes on how to read it.

        Args:
            path: File to write; None writes none.

        Returns:
            The text.
        """
        table = tables.markdown_table([self._line(method) for method in self.methods])
        parts = [f"## {self.title}" if self.title else "", table, self._legend()]
        parts += [_list("The published numbers come from another setting", self.differences)]
        parts += [_list("Notes", self.notes)]
        return written("\n\n".join(filter(None, parts)), path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One row for each result, in full precision.

        Args:
            path: File to write; None writes none.

        Returns:
            The text.
        """
        return written(tables.csv_text([cell.to_row() for cell in self.results]), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `from_dict` reads them."""
        fields = ("results", "title", "metric", "level", "differences", "notes")
        return {name: records.plain(getattr(self, name)) for name in fields}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> ResultsTable:
        """Inverse of `to_dict`.

        Args:
            payload: What `to_dict` returned, or the JSON read back.

        Returns:
            The table.
        """
        results = tuple(
            Result(
                **entry
                | {
                    "values": tuple(entry["values"]),
                    "interval": entry["interval"] and tuple(entry["interval"]),
                }
            )
            for entry in payload["results"]
        )
        lists = {name: tuple(payload[name]) for name in ("differences", "notes")}
        return cls(**{**payload, "results": results, **lists})

    def to_json(self, path: str | Path | None = None) -> str:
        """Strict JSON of `to_dict`.

        Args:
            path: File to write; None writes none.

        Returns:
            The text.
        """
        return written(records.json_text(self.to_dict(), indent=2), path)

    def _line(self, method: str) -> dict[str, Any]:
        line: dict[str, Any] = {"method": method}
        for column in self.columns:
            cell = self.cell(method, column)
            line[column] = None if cell is None else _text(cell)
            if any(other.published for other in self.results if other.column == column):
                published = cell.published if cell else None
                line[f"{column}, published"] = None if published is None else f"{published:.4f}"
        return line

    def _legend(self) -> str:
        seeds = sorted({len(result.values) for result in self.results})
        counts = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        text = f"{self.metric}, mean over {counts} seed{'' if seeds == [1] else 's'}"
        if any(result.difference is not None for result in self.results):
            text += f"; in brackets the difference to {self.methods[0]}"
        if any(result.interval is not None for result in self.results):
            text += f" and its {100 * self.level:g} % interval"
        return text + "."


def _text(cell: Result) -> str:
    """Mean, difference and interval of one result."""
    text = f"{cell.mean:.4f}"
    if cell.difference is None:
        return text
    change = f"{cell.difference:+.4f}"
    if cell.interval is not None:
        change += f" [{cell.interval[0]:+.4f}, {cell.interval[1]:+.4f}]"
    return f"{text} ({change})"


def _list(heading: str, entries: Sequence[str]) -> str:
    lines = [f"- {entry}" for entry in entries]
    return "\n".join([f"{heading}:", "", *lines]) if entries else ""
