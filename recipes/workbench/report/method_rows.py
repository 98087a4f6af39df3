"""The rows of a results table: one tuned model, its noise removed by every method.

How much noise is removed is chosen on the split `selection`. Only the chosen model is then judged
on the other splits. Finished rows are in a file and are not computed again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.models.filters import HEAD, LAYERS, RANKS, UPDATE, filtered, search_config
from workbench.writing import write_json

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
METHODS = [name for name in TITLES if name not in (BASE, HEAD) and not name.endswith(LAYERS)]
LAYERWISE = [name for name in TITLES if name.endswith(LAYERS)]
"""Rows that filter like Wu, Zhu & Li (2025): layer after layer, as long as the accuracy holds."""
FRACTIONS = [0.1, 0.4, 0.6, 0.8, 1.0]
"""Wu, Zhu & Li (2025) remove 40 to 100 % of the noise directions; 10 % is a cautious choice."""
RANK_FRACTIONS = [0.8, 0.9, 0.95, 0.98, 0.99]
"""Shares of the update's parameters to remove. They are large, as most of an update is noise."""
Evaluate = Callable[[Any, str], Any]
"""Maps a model and the name of a split to the correctness of every example."""


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
    """Compute all rows of one tuned model.

    Args:
        file: JSON file of the rows; a row that is in the file is not computed again.
        tuned: The fine-tuned model; it is not changed.
        base: The model that its training began with.
        evaluate: Function that returns the correctness of every example of a split.
        splits: Splits on which the chosen models are judged, besides `selection`.
        methods: Names of the rows, in addition to the base.
        fractions: Shares of the noise to try. For svd and slr they are shares of all directions, of
            which at least one stays. Shared ranks use `RANK_FRACTIONS` instead. A ternary head has
            no share.
        calibration: Batches of the model's arguments, for a ternary head.
        evaluations: The most evaluations on `selection` for a row that filters layer by layer.
        **options: Further options of the methods that look at a spectrum, as in `RMTConfig`.

    Returns:
        For each row: `removed` (the share that was chosen), `kept` (the share that is left),
        `curve` (pairs of share removed and accuracy on `selection`), `splits` (correctness of the
        examples as 0 and 1, by split); where they apply, `whole` (the second result of `sweep`)
        and `layers` (the share removed in each layer).
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
    """The most noise that each layer can lose without lower accuracy on the selection split."""
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
    """For every share, the accuracy on the selection split and the number of unfiltered layers.

    A layer without spikes has no signal, so nothing would be left if all of its noise were removed.
    The package then leaves the whole layer as it is, although smaller shares filter this layer. The
    accuracy may jump there, and figures mark these points.

    Returns:
        Two lists. The first has pairs of the share removed and the accuracy. The second has pairs
        of the share removed and the number of layers that smaller shares filter but this share
        leaves whole.
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
    """The removed share with the best accuracy on `selection`; of several, the largest share."""
    return max(curve, key=lambda point: (point[1], point[0]))[0]
