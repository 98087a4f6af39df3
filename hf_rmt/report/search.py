"""The report of a search for noise that can be removed: a table, a curve, and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from hf_rmt.plan import CompressionPlan
from hf_rmt.report import records, tables
from hf_rmt.report.figures.style import finish, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_rmt.report.figures.style import Palette

ROUNDING = 1e-9
"""Relative tolerance when metrics are compared: in floating point 0.51 - 0.1 is more than 0.41."""


def within(metric: float, baseline: float, tolerance: float) -> bool:
    """Whether a metric is at least the baseline minus the tolerance. A higher metric is better.

    Examples:
        >>> within(0.8, 0.9, 0.1), within(0.79, 0.9, 0.1), within(float("nan"), 0.9, 0.1)
        (True, False, False)
    """
    floor = baseline - tolerance
    return metric >= floor or math.isclose(metric, floor, rel_tol=ROUNDING)


@dataclass(frozen=True)
class Evaluation:
    """One measurement of the metric, on a model of which some noise was removed.

    Attributes:
        removal: The fraction of its noise (see `SearchReport`) that each layer lost, by the name of
            the layer. Layers that are not listed were not changed.
        metric: The value of the metric.
    """

    removal: dict[str, float]
    metric: float


@dataclass(frozen=True)
class SearchReport:
    """The most noise that can be removed, layer by layer, while a metric stays within a tolerance.

    Attributes:
        baseline: Metric of the model with all of its noise.
        tolerance: How far the metric may fall below the baseline.
        metric: Metric of the model without the noise in `removal`.
        removal: The fraction of its noise directions to remove from each layer, by the name of the
            layer. Layers that stay unchanged are left out. Noise directions are the singular
            directions of a weight that are not signal; `hf_rmt.spectra` explains signal and noise.
        curve: Pairs (fraction, metric), sorted by the fraction: the metric if each layer loses this
            fraction of its noise. The last pair is an exception: layers with a signal lose all
            their noise. Layers without a signal lose nothing, or nothing would be left of them. The
            fraction of this pair is the mean over all layers.
        evaluations: All measurements of the metric, in their order.
        layers: Shape of each layer that was searched, by name.
        plan: What happens to each layer in `removal`.
        settings: The settings of the compression that the user chose, as plain values.
    """

    baseline: float
    tolerance: float
    metric: float
    removal: dict[str, float]
    curve: tuple[tuple[float, float], ...]
    evaluations: tuple[Evaluation, ...]
    layers: dict[str, tuple[int, int]]
    plan: CompressionPlan
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return self.table()

    @property
    def mean_removal(self) -> float:
        """The fraction of noise directions that a layer loses, as the mean over searched layers.

        Noise directions are the singular directions of a weight that are not signal (see
        `hf_rmt.spectra`).
        """
        return fmean(self.removal.get(name, 0.0) for name in self.layers)

    @property
    def uniform_removal(self) -> float:
        """Largest fraction of noise in `curve` whose removal keeps the metric within the tolerance.

        It is 0 if there is none.
        """
        held = [
            fraction
            for fraction, metric in self.curve
            if within(metric, self.baseline, self.tolerance)
        ]
        return max(held, default=0.0)

    @property
    def size_ratio(self) -> float:
        """Bits of the searched layers after noise is removed, divided by those of dense weights."""
        entries = {name: rows * columns for name, (rows, columns) in self.layers.items()}
        stored = {layer.name: layer.bits / layer.dense_bits for layer in self.plan.compressed}
        kept = sum(count * stored.get(name, 1.0) for name, count in entries.items())
        return kept / sum(entries.values())

    def summary(self) -> str:
        """What the search for removable noise found, in one sentence."""
        return (
            f"metric {_metric(self.metric)}, unfiltered {_metric(self.baseline)}, tolerance "
            f"{self.tolerance:.3g}: {len(self.removal)} of {len(self)} layers lose noise; over all "
            f"{len(self)} layers the mean loss is {tables.percent(self.mean_removal)} of the noise "
            f"directions, and {tables.percent(self.uniform_removal)} if all layers get the same "
            f"fraction; {self.size_ratio:.2f} of the dense size; {len(self.evaluations)} "
            "evaluations"
        )

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `table`: for each layer, a mapping from names of columns to values."""
        plans = {layer.name: layer for layer in self.plan}
        rows = []
        for name, shape in self.layers.items():
            plan = plans.get(name)
            stored = plan is not None and plan.compressed
            rows.append(
                {
                    "name": name,
                    "shape": tables.shape_text(shape),
                    "noise_removed": tables.Share(self.removal.get(name, 0.0)),
                    "energy_dropped": tables.Share(plan.dropped_energy if plan else 0.0),
                    "rank": plan.rank if plan and stored else None,
                    "of_dense_size": plan.bits / plan.dense_bits if plan and stored else 1.0,
                }
            )
        return rows

    def table(self) -> str:
        """Plain text: one line per layer, the metric for each removed fraction, and a summary."""
        points = [(0.0, self.baseline), *self.curve]
        curve = [
            {"noise_removed_everywhere": tables.Share(fraction), "metric": _metric(metric)}
            for fraction, metric in points
        ]
        parts = [tables.aligned_table(self.rows()), tables.aligned_table(curve), self.summary()]
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The report as a dict of plain JSON values; `to_json` writes them as text."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return records.plain({**values, "plan": self.plan.to_dict()})

    def to_json(self, path: str | Path | None = None) -> str:
        """The result of `to_dict` as strict JSON, which has no nan and no infinity.

        Args:
            path: The file to write, with the ending `.json`; None writes no file.

        Returns:
            The text.
        """
        return records.written(records.json_text(self.to_dict(), indent=2), path, kinds=(".json",))

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """Read a report that `to_json` wrote.

        Args:
            source: The text, or the path of a file.

        Returns:
            The report.

        Raises:
            ValueError: If the source is not the JSON of such a report.
        """
        record = records.read(source)
        known = {entry.name for entry in fields(cls)}
        if not isinstance(record, dict) or set(record) != known:
            raise ValueError(
                f"a search has the fields {sorted(known)}, got "
                f"{sorted(record) if isinstance(record, dict) else type(record).__name__}; pass "
                "what to_json wrote, with the same version of hf_rmt"
            )
        changed: dict[str, Any] = {
            "curve": tuple((fraction, number(metric)) for fraction, metric in record["curve"]),
            "evaluations": evaluations_of(record["evaluations"]),
            "layers": {name: (shape[0], shape[1]) for name, shape in record["layers"].items()},
            "plan": CompressionPlan.from_dict(record["plan"]),
        }
        return cls(**{**record, **changed})

    def plot_curve(self, *, dark: bool = False) -> Figure:
        """Draw the curve: the metric over the fraction of noise removed. Also mark the result.

        Args:
            dark: Draw on a dark background.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        with styled(dark=dark) as colours:
            figure = new_figure(5.5, 3.6, dark=dark)
            axes = figure.subplots()
            self._draw(axes, colours)
            axes.set_xlabel("noise directions removed (%)")
            axes.set_ylabel("metric")
            finish(axes, colours)
            figure.legend(loc="outside lower center", ncols=2)
        return figure

    def _draw(self, axes: Axes, colours: Palette) -> None:
        floor = self.baseline - self.tolerance
        x, y = zip((0.0, self.baseline), *self.curve, strict=True)
        line, found = colours.series[:2]
        axes.axhline(self.baseline, color=colours.edge, linewidth=0.8, label="unfiltered")
        axes.axhline(floor, color=colours.edge, ls="--", linewidth=0.8, label="tolerance")
        percents = [100 * fraction for fraction in x]
        axes.plot(percents, y, color=line, marker="o", label="the same in every layer")
        spot: dict[str, Any] = {"color": found, "marker": "D", "ls": "", "zorder": 3}
        axes.plot([100 * self.mean_removal], [self.metric], label="layer by layer (mean)", **spot)

    def save(self, folder: str | Path) -> None:
        """Write search.json, table.txt, curve.svg and curve.png.

        Args:
            folder: The folder to write to; it is made if it does not exist.

        Raises:
            ImportError: If matplotlib is not installed. The texts were written before this error.
            ValueError: If the name of the folder is empty.
        """
        target = records.made_folder(folder)
        self.to_json(target / "search.json")
        records.written(self.table(), target / "table.txt")
        curve = self.plot_curve()
        for kind in ("svg", "png"):
            save_figure(curve, target / f"curve.{kind}")


def _metric(value: float) -> str:
    """A metric in four digits; -0.0 is written as 0."""
    return f"{value + 0.0:.4g}"


def evaluations_of(entries: list[Mapping[str, Any]]) -> tuple[Evaluation, ...]:
    """The `Evaluation` objects (measurements of the metric) that plain JSON values describe."""
    return tuple(
        Evaluation(
            {name: float(fraction) for name, fraction in entry["removal"].items()},
            number(entry["metric"]),
        )
        for entry in entries
    )


def number(value: Any) -> float:
    """A number from a JSON value, where nan is written as null and infinity as a string."""
    return math.nan if value is None else float(value)
