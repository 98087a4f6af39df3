"""The rows of a results table: one tuned model, its noise removed by every method.

How much is removed is chosen on the split `selection`, and only the choice is tried on the others.
What is finished stands in a file and is not done again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.common import LEVEL, paired_bootstrap
from workbench.filters import HEAD, LAYERS, RANKS, UPDATE, filtered, search_config
from workbench.result_figures import curve_figure, save_table
from workbench.results import Result, ResultsTable
from workbench.writing import write_figure, write_json, write_text

import numpy as np
from accelerate import PartialState

import hf_rmt
from hf_rmt.report.search import SearchReport

BASE = "base"
TITLES = {
    BASE: BASE,
    UPDATE: "filtered update, PDB",
    RANKS: "filtered update, shared ranks",
    "pdb": "PDB",
    "bema": "PUB, BEMA",
    "kernel": "PUB, kernel",
    "slr": "SLR",
    "svd": "SVD",
    HEAD: "ternary head",
    **{
        f"{law}{LAYERS}": f"{title}, layer by layer"
        for law, title in [("pdb", "PDB"), ("bema", "BEMA"), ("kernel", "kernel"), ("svd", "SVD")]
    },
}
TUNED, TRAINED = "base (fine-tuned)", "base (trained from nothing)"
"""What the base is called in tables and figures."""
METHODS = [name for name in TITLES if name not in (BASE, HEAD) and not name.endswith(LAYERS)]
LAYERWISE = [name for name in TITLES if name.endswith(LAYERS)]
"""Rows as Wu, Zhu & Li (2025) filter: one layer after the other, as far as the accuracy holds."""
FRACTIONS = [0.1, 0.4, 0.6, 0.8, 1.0]
"""Wu, Zhu & Li (2025) remove 40 to 100 % of the noise directions; 10 % is a cautious choice."""
RANK_FRACTIONS = [0.8, 0.9, 0.95, 0.98, 0.99]
"""Shares of the update's parameters. They are large: most of an update is noise."""
Evaluate = Callable[[Any, str], Any]
"""A model and the name of a split in, the correctness of every example out."""


@dataclass(frozen=True)
class Column:
    """A task (and split) of the table: its rows by seed, and what was published for it."""

    name: str
    split: str
    seeds: Sequence[Mapping[str, Any]]
    published: Mapping[str, float] = field(default_factory=dict)


def method_rows(
    file: Path,
    tuned: Any,
    base: Any,
    evaluate: Evaluate,
    *,
    splits: Sequence[str],
    methods: Sequence[str] = METHODS,
    fractions: Sequence[float] = FRACTIONS,
    calibration: Sequence[Any] = (),
    evaluations: int = 100,
    **options: Any,
) -> dict[str, Any]:
    """All rows of one tuned model.

    Args:
        file: JSON of the rows; those that stand there are not done again.
        tuned: The fine-tuned model, not changed.
        base: The model that its training began with.
        evaluate: Correctness of every example of a split.
        splits: What the chosen filter is tried on; `selection` is looked at besides.
        methods: Which rows, beside the base.
        fractions: Shares of the noise to try; for svd and slr of all directions, of which one
            stays. Shared ranks have their own, of parameters; a ternary head has none to choose.
        calibration: Batches of the model's arguments, for a ternary head.
        evaluations: Most evaluations on the selection split for a row layer by layer.
        **options: Further options of the methods that look at a spectrum, as in `RMTConfig`.

    Returns:
        By row: `removed` (what was chosen), `kept` (share that is left), `curve` (removed and
        selection accuracy), `whole` (removed and the number of layers that are whole again,
        though a smaller share filtered them), `layers` (the share of each layer, in rows that
        choose layer by layer), and for each split the correctness of the examples
        as 0 and 1.
    """
    rows = json.loads(file.read_text()) if file.exists() else {}
    for method in (BASE, *methods):
        if method in rows:
            continue
        about: dict[str, Any] = {}
        if method == BASE:
            removed, model, kept = 0.0, tuned, 1.0
            curve = [[0.0, float(np.mean(evaluate(tuned, "selection")))]]
        elif method in LAYERWISE:
            found = searched(file, tuned, method, evaluate, fractions, evaluations, **options)
            removed, curve = found.mean_removal, [[found.mean_removal, found.metric]]
            model = filtered(tuned, base, method, found.removal, **options).model
            kept = found.size_ratio  # over all layers that were searched, filtered or not
            about = {"layers": found.removal}
        else:
            tried = {RANKS: RANK_FRACTIONS, HEAD: [0.0]}.get(method, fractions)
            curve, whole = sweep(tuned, base, method, evaluate, tried, calibration, **options)
            removed = choice(curve)
            model, kept, _ = filtered(tuned, base, method, removed, calibration, **options)
            about = {"whole": whole} if whole else {}
        correct = {name: np.asarray(evaluate(model, name), int).tolist() for name in splits}
        rows[method] = {"removed": removed, "kept": kept, "curve": curve, "splits": correct}
        rows[method] |= about
        shown = ", ".join(f"{name} {np.mean(values):.4f}" for name, values in correct.items())
        if PartialState().is_main_process:
            write_json(file, rows, indent=None)
            print(f"{file.parent}: {TITLES[method]}, {removed:.0%} removed: {shown}", flush=True)
    return rows


def searched(
    file: Path,
    tuned: Any,
    method: str,
    evaluate: Evaluate,
    fractions: Sequence[float],
    evaluations: int,
    **options: Any,
) -> SearchReport:
    """The most noise that each layer can lose while the selection split is classified as well."""
    return hf_rmt.search(
        copy.deepcopy(tuned),
        lambda model: float(np.mean(evaluate(model, "selection"))),
        tolerance=0.0,
        config=search_config(method, **options),
        fractions=fractions,
        max_evaluations=evaluations,
        resume_from=file.with_name(f"search-{method}.json"),
    )


def sweep(
    tuned: Any,
    base: Any,
    method: str,
    evaluate: Evaluate,
    fractions: Sequence[float],
    calibration: Sequence[Any] = (),
    **options: Any,
) -> tuple[list[list[float]], list[list[float]]]:
    """Accuracy on the selection split against the share removed, and layers that are whole again.

    A layer without spikes has no signal that could be left once all of its noise is removed. The
    package then leaves the whole layer as it is, though it filters it at smaller shares. The
    accuracy may jump there, and figures mark these points.

    Returns:
        Pairs of the share removed and the accuracy, and pairs of the share removed and the number
        of layers that a smaller share filters and this one does not.
    """
    curve, untouched = [], {}
    for removed in fractions:
        model, _, untouched[removed] = filtered(
            tuned, base, method, removed, calibration, **options
        )
        curve.append([removed, float(np.mean(evaluate(model, "selection")))])
    whole = []
    for removed, layers in untouched.items():
        smaller = [other for share, other in untouched.items() if share < removed]
        if again := layers - frozenset.intersection(layers, *smaller):
            whole.append([removed, len(again)])
    return curve, whole


def choice(curve: Sequence[Sequence[float]]) -> float:
    """The share removed that is best on the selection split, of equals the largest."""
    return max(curve, key=lambda point: (point[1], point[0]))[0]


def column_of(
    task: str, split: str, seeds: Sequence[Mapping[str, Any]], published: Mapping[str, float]
) -> Column:
    """The column of a split; what was published belongs to dev alone."""
    return Column(f"{task} {split}", split, seeds, published if split == "dev" else {})


def results_table(
    columns: Sequence[Column], methods: Sequence[str], *, base_title: str = TUNED, **about: Any
) -> ResultsTable:
    """The table of all tasks, every row against the base by the paired bootstrap.

    Args:
        columns: Of the table.
        methods: Rows beside the base.
        base_title: What the base is called.
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
    """Tables, figures, and for each task the curves of the selection split."""
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
    """Mean selection accuracy over the seeds, where all have the share removed."""
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
        folder: Where to.
        seeds: The rows by seed.
        models: The tuned model and its base, given the position of the seed.

    Returns:
        What it is, in words.
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
        f"{TITLES[method]}: {removed:.0%} removed, {kept:.1%} of the parameters left in what was "
        f"filtered; accuracy {accuracy:.4f} on the selection split"
    )
    return what


def write_card(folder: Path, table: ResultsTable, what: str, base_model: str) -> None:
    """The README.md of the saved model: what it is, and the table of all methods."""
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
