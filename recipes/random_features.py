"""Compare ridge regressions on random features: test error against number and memory of features.

Ternary features (Tiomoko Ali et al., 2022) have ternary weights and two levels; `exact steps` have
as many levels as an exact match needs. Both are compared with random Fourier features,
low-precision Fourier features (weights and features rounded to a few bits) and those of Nystrom.
For each kind, bandwidth and ridge are chosen on rows that are kept back from the training rows.

    python recipes/random_features.py --embedded
    python recipes/random_features.py --data_dir FILE.csv --target COLUMN
    python recipes/random_features.py

The data are a census from the Hub. --embedded takes the digits of scikit-learn instead, and
--data_dir a file. A column of words becomes indicators (0 or 1), one for each word, and all columns
are standardised. The memory is that of the map, the ridge weights in 32 bits, and the features of
one batch. The output folder receives the tables, the figure and all numbers. A second run continues
from these results.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from workbench.command import parser_of
from workbench.command import run as start
from workbench.models.low_precision import LowPrecisionFourier
from workbench.models.ridge import Array, Rows, fit_ridge
from workbench.processes import one_process
from workbench.report.memory_study import MEGABIT, Finished, draw_curves
from workbench.report.result_figures import save_table
from workbench.report.results import Result, ResultsTable
from workbench.writing import write_figure

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.preprocessing import StandardScaler

from hf_rmt import TernaryRandomFeatures
from hf_rmt.kernels import NoMatchError

HUB, HUB_TARGET = "scikit-learn/adult-census-income", "income"
FLOAT = 32
BASE = "Fourier"
LEVELS = {"ternary": 2, "exact steps": None}
OWN = ("features", "seeds", "bits", "sparsity", "batch_size", "output_dir")
"""Options that choose the runs or their tables; they do not change the result of any run."""


@dataclass(frozen=True)
class Run:
    """The result of one regression: its error, the bandwidth and ridge chosen, and its bits.

    The targets have variance 1. `gamma` is the bandwidth times the number of columns, `strength` is
    that of the ridge, and `feature_bits` are the bits of the features of one row.
    """

    method: str
    components: int
    seed: int
    error: float
    gamma: float
    strength: float
    map_bits: int
    feature_bits: int
    readout_bits: int

    def memory(self, batch: int) -> float:
        """Megabits of the map to features, the ridge weights, and the features of a batch."""
        return (self.map_bits + self.readout_bits + batch * self.feature_bits) / MEGABIT


def main() -> None:
    one_process()
    arguments = parser().parse_args()
    inputs, targets, name = read_table(arguments)
    splits = split(inputs, targets, arguments)
    setting = {key: value for key, value in vars(arguments).items() if key not in OWN}
    finished = Finished(arguments.output_dir, setting)
    runs = []
    for method, count, seed in product(methods(arguments), arguments.features, arguments.seeds):
        if method == "Nystrom" and count > len(splits[0].features):
            continue  # Nystrom has at most one feature for each training row
        key = f"{method}, {count}, seed {seed}"
        if key not in finished.rows:
            run = regression(arguments, splits, method, count, seed)
            finished.add(key, asdict(run))
            print(f"{key}: error {run.error:.4f}", flush=True)
        runs.append(Run(**finished.rows[key]))
    save(
        finished.folder, runs, arguments.batch_size, f"{name}, {' x '.join(map(str, inputs.shape))}"
    )


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--data_dir", help="CSV file; default: the Hub")
    made.add_argument("--target", help="column to predict; default: the last")
    made.add_argument("--embedded", action="store_true", help="scikit-learn's digits, no Hub")
    made.add_argument(
        "--output_dir", default="results/random-features", help="folder for all results"
    )
    made.add_argument(
        "--features",
        type=int,
        nargs="+",
        default=[100, 300, 1000, 3000],
        help="numbers of features",
    )
    made.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; one run for each"
    )
    made.add_argument(
        "--bits", type=int, nargs="+", default=[8, 2], help="bits of the low-precision features"
    )
    made.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        default=[0.5, 0.9],
        help="shares of zeros in ternary weights",
    )
    made.add_argument(
        "--gammas",
        type=float,
        nargs="+",
        default=[0.1, 0.3, 1.0],
        help="bandwidths to choose from, times the number of columns",
    )
    made.add_argument(
        "--train_rows", type=int, default=16_000, help="most training rows, as published"
    )
    made.add_argument("--test_rows", type=int, default=2000, help="most test rows, as published")
    made.add_argument(
        "--batch_size", type=int, default=250, help="rows whose features count as memory"
    )
    return made


def methods(arguments: argparse.Namespace) -> list[str]:
    """The names of the rows."""
    low = [f"Fourier, {bits} bits" for bits in arguments.bits]
    ours = [f"{kind}, sparsity {share:g}" for kind in LEVELS for share in arguments.sparsity]
    return [BASE, *low, "Nystrom", *ours]


def read_table(arguments: argparse.Namespace) -> tuple[Array, Array, str]:
    """Inputs, targets (indicators if they are words) and the name of the data."""
    if arguments.embedded:
        inputs, labels = load_digits(return_X_y=True)
        return inputs, np.eye(10)[labels], "digits"
    if arguments.data_dir is None:
        from workbench.data.rows import load_hub

        table, target, name = load_hub(HUB, split="train").to_pandas(), HUB_TARGET, HUB
    else:
        table, target = pd.read_csv(arguments.data_dir), arguments.target
        name = Path(arguments.data_dir).stem
    target = target or table.columns[-1]
    if target not in table:
        raise SystemExit(f"--target must be one of {', '.join(table.columns)}, got {target!r}")
    inputs = pd.get_dummies(table.drop(columns=target), dtype=float)
    targets = pd.get_dummies(table[[target]], dtype=float)
    return inputs.to_numpy(float), targets.to_numpy(float), name


def split(inputs: Array, targets: Array, arguments: argparse.Namespace) -> tuple[Rows, Rows, Rows]:
    """Split the data: rows to train on, a tenth of them kept back to choose on, rows to test on.

    All rows are standardised by the mean and the spread of the training rows.
    """
    order = np.random.default_rng(0).permutation(len(inputs))
    test = min(arguments.test_rows, len(order) // 4)
    train = order[test : test + arguments.train_rows]
    kept, train = np.split(train, [len(train) // 10])
    scaler = StandardScaler().fit(inputs[train])
    # one scale for all outputs, so that rare classes do not count for more
    mean, scale = targets[train].mean(0), np.sqrt(targets[train].var(0).mean())
    return tuple(
        Rows(scaler.transform(inputs[rows]).astype("f4"), (targets[rows] - mean) / scale)
        for rows in (train, kept, order[:test])
    )


def regression(
    arguments: argparse.Namespace, splits: tuple[Rows, ...], method: str, count: int, seed: int
) -> Run:
    """Choose bandwidth and ridge on the rows kept back, and measure the error on the test rows."""
    best: tuple[float, Run] | None = None
    width = splits[0].features.shape[1]
    for gamma in arguments.gammas:
        options = {"n_components": count, "gamma": gamma / width, "random_state": seed}
        try:
            features = feature_map(method, options).fit(splits[0].features)
        except NoMatchError:
            continue  # nearly linear: no step of few levels matches such a kernel
        train, kept, test = (
            Rows(features.transform(rows.features), rows.targets) for rows in splits
        )
        readout = fit_ridge(train, kept, squared_error)
        chosen = squared_error(readout(kept.features), kept.targets)
        if best is None or chosen < best[0]:
            error = squared_error(readout(test.features), test.targets)
            bits = (*map_and_feature_bits(features, width), FLOAT * readout.weights.size)
            best = chosen, Run(method, count, seed, error, gamma, readout.strength, *bits)
    if best is None:
        raise SystemExit(f"{method}: no step matches; add a larger bandwidth to --gammas")
    return best[1]


def feature_map(method: str, options: dict[str, Any]) -> Any:
    """The scikit-learn transformer that makes the features of a method."""
    kind, _, detail = method.partition(", ")
    if kind == "Nystrom":
        return Nystroem(kernel="rbf", **options)
    if kind in LEVELS:
        sparsity = float(detail.split()[-1])
        return TernaryRandomFeatures(sparsity=sparsity, levels=LEVELS[kind], **options)
    return (
        LowPrecisionFourier(bits=int(detail.split()[0]), **options)
        if detail
        else (RBFSampler(**options))
    )


def map_and_feature_bits(features: Any, width: int) -> tuple[int, int]:
    """Bits of a fitted transformer (32 for a float), and of the features of one row."""
    if isinstance(features, TernaryRandomFeatures):
        return features.memory_bits_, features.feature_bits_
    count = features.n_components
    if isinstance(features, Nystroem):
        return FLOAT * count * (width + count), FLOAT * count
    bits = features.bits if isinstance(features, LowPrecisionFourier) else FLOAT
    return count * (bits * width + FLOAT), bits * count


def squared_error(predictions: Array, targets: Array) -> float:
    """Squared error of predictions: its mean over rows and outputs."""
    return float(np.square(predictions - targets).mean())


def save(folder: Path, runs: Sequence[Run], batch: int, name: str) -> None:
    """Write the tables of errors and memory, and the figure."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, run.components), []).append(run)
    errors = {key: fmean(run.error for run in group) for key, group in groups.items()}
    memory = {key: group[0].memory(batch) for key, group in groups.items()}
    results = []
    for (method, count), group in groups.items():
        error = errors[method, count]
        difference = None if method == BASE else error - errors[BASE, count]
        values = tuple(run.error for run in group)
        results.append(Result(method, f"{count} features", values, difference))
    table = ResultsTable(
        tuple(results),
        title=f"Ridge regression on random features: {name}",
        metric="test mean squared error, targets of variance 1",
        notes=(
            *memory_notes(memory),
            f"memory: map, ridge weights in {FLOAT} bits, and features of {batch} rows",
            "bandwidth and ridge were chosen in every run on rows kept back",
        ),
    )
    save_table(table, folder)
    print(table)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {"features": {}, "memory (Mbit)": {}}
    for (method, count), error in errors.items():
        for panel, x in zip(panels.values(), (count, memory[method, count]), strict=True):
            panel.setdefault(method, []).append((x, error))
    figure = draw_curves(panels, metric="test mean squared error", title=table.title)
    write_figure(figure, folder, "errors")


def memory_notes(memory: Mapping[tuple[str, int], float]) -> list[str]:
    """The memory of every method, a line for each."""
    lines: dict[str, list[str]] = {}
    for (method, count), size in memory.items():
        lines.setdefault(method, []).append(f"{size:.3g} ({count})")
    return [f"{method}: {', '.join(sizes)} Mbit (features)" for method, sizes in lines.items()]


if __name__ == "__main__":
    start(main)
