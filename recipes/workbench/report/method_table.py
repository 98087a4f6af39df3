"""The table of all methods on all tasks, its figures, and the best filtered model with its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.models.filters import HEAD, RANKS, filtered
from workbench.report.accuracy import LEVEL, paired_bootstrap
from workbench.report.method_rows import BASE, TITLES
from workbench.report.result_figures import curve_figure, save_table
from workbench.report.results import Result, ResultsTable
from workbench.writing import write_figure, write_text

import numpy as np
from accelerate import PartialState

TUNED, TRAINED = "base (fine-tuned)", "base (trained from nothing)"
"""Names of the base (the model before filtering) in tables and figures."""


@dataclass(frozen=True)
class Column:
    """A task (and split) of the table: its rows by seed, and its published accuracies by method."""

    name: str
    split: str
    seeds: Sequence[Mapping[str, Any]]
    published: Mapping[str, float] = field(default_factory=dict)


def column_of(
    task: str, split: str, seeds: Sequence[Mapping[str, Any]], published: Mapping[str, float]
) -> Column:
    """The column of a split; only dev has published accuracies."""
    return Column(f"{task} {split}", split, seeds, published if split == "dev" else {})


def results_table(
    columns: Sequence[Column], methods: Sequence[str], *, base_title: str = TUNED, **about: Any
) -> ResultsTable:
    """The table of all tasks; every row is compared with the base by the paired bootstrap.

    Args:
        columns: Columns of the table.
        methods: Rows in addition to the base.
        base_title: Name of the base.
        **about: Title and notes of the table.

    Returns:
        The table.
    """
    results = []
    for method in (BASE, *methods):
        for column in columns:
            correct = [np.array(rows[method]["splits"][column.split]) for rows in column.seeds]
            base = [np.array(rows[BASE]["splits"][column.split]) for rows in column.seeds]
            about_it: dict[str, Any] = {}
            if method != BASE:
                interval = paired_bootstrap(correct, base)
                about_it = {"difference": interval.mean, "interval": interval[1:]}
                about_it["note"] = _note([rows[method] for rows in column.seeds])
            values = tuple(float(seed.mean()) for seed in correct)
            published = column.published.get(method)
            results.append(
                Result(
                    base_title if method == BASE else TITLES[method],
                    column.name,
                    values,
                    published=published,
                    **about_it,
                )
            )
    return ResultsTable(tuple(results), level=LEVEL, **about)


def save_results(folder: Path, table: ResultsTable, columns: Sequence[Column]) -> None:
    """Save the tables, the figures, and for each task the curves of the selection split."""
    if not PartialState().is_main_process:
        return
    save_table(table, folder)
    print(table)
    tasks = {column.name.removesuffix(f" {column.split}"): column.seeds for column in columns}
    for task, seeds in tasks.items():
        done = [method for method in seeds[0] if all(method in rows for rows in seeds)]
        curves = {TITLES[method]: mean_curve(seeds, method) for method in done}
        (_, level), *_ = curves.pop(TITLES[BASE])
        marked = {
            TITLES[method]: {
                removed for rows in seeds for removed, _ in rows[method].get("whole", ())
            }
            for method in done
        }
        unit = "\n(shared ranks: share of the parameters)" if RANKS in done else ""
        figure = curve_figure(
            curves, base=level, marked=marked, title=f"{task}, selection split{unit}"
        )
        write_figure(figure, folder, f"curve-{task}")


def mean_curve(seeds: Sequence[Mapping[str, Any]], method: str) -> list[tuple[float, float]]:
    """Mean selection accuracy over the seeds, at each removed share that all seeds have."""
    curves = [dict(map(tuple, rows[method]["curve"])) for rows in seeds]
    return [
        (removed, float(np.mean([curve[removed] for curve in curves])))
        for removed in curves[0]
        if all(removed in curve for curve in curves)
    ]


def save_best(
    folder: Path, seeds: Sequence[Mapping[str, Any]], models: Callable[[int], tuple[Any, Any]]
) -> str:
    """Save the filtered model that is best on the selection split.

    Args:
        folder: The folder to save to.
        seeds: The rows by seed.
        models: A function that takes the position of a seed and returns its tuned model and base.

    Returns:
        A description of the model.
    """
    candidates = [
        (dict(map(tuple, row["curve"]))[row["removed"]], -place, method)
        for place, rows in enumerate(seeds)
        for method, row in rows.items()
        if method not in (BASE, HEAD)
    ]
    accuracy, place, method = max(candidates)
    row = seeds[-place][method]
    removed = row["removed"]
    model, kept, _ = filtered(*models(-place), method, row.get("layers", removed))
    if PartialState().is_main_process:
        model.save_pretrained(folder)
    what = (
        f"{TITLES[method]}: {removed:.0%} removed, {kept:.1%} of the parameters left in the "
        f"filtered layers; accuracy {accuracy:.4f} on the selection split"
    )
    return what


def write_card(folder: Path, table: ResultsTable, what: str, base_model: str) -> None:
    """Write the README.md of the saved model: what the model is, and the table of all methods."""
    known = "" if Path(base_model).exists() else f"base_model: {base_model}\n"
    front = f"---\nlibrary_name: transformers\n{known}tags: [hf_rmt, random-matrix-theory]\n---\n"
    text = (
        f"# {table.title}\n\nThis model is the best of the table on the selection split.\n\n"
        f"{what}.\n\n{table.to_markdown()}\n"
    )
    if PartialState().is_main_process:
        write_text(folder / "README.md", f"{front}\n{text}")


def _note(rows: Sequence[Mapping[str, Any]]) -> str:
    removed = ", ".join(f"{row['removed']:.0%}" for row in rows)
    kept = ", ".join(f"{row['kept']:.1%}" for row in rows)
    return f"removed by seed: {removed}; left: {kept}"
