"""What the recipes share: rows from files, the Hub or this file, a metric that needs no network,
label noise, and the paired bootstrap. A recipe runs as `python recipes/NAME.py` and says
`from workbench.common import ...`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from workbench.writing import write_json

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score

FREE = {
    *("task", "seeds", "methods", "fractions"),
    *("output_dir", "push_to_hub", "data_dir", "use_cpu"),
}
"""Options that may change from one run to the next in one folder."""
DRAWS, LEVEL = 10_000, 0.95
LOCAL_OPTIONS = "--data_dir FOLDER and --model FOLDER (files on this machine)"

WHO = ("farmer", "nurse", "painter", "soldier", "teacher", "tailor", "sailor", "judge", "baker")
DID = ("bought", "lost", "found", "described", "carried", "hid")
KINDS = {
    "an animal": ("a horse", "a goat", "a parrot", "a rabbit"),
    "an instrument": ("a violin", "a trumpet", "a flute", "a drum"),
    "a tool": ("a hammer", "a saw", "a chisel", "a spade"),
    "a vehicle": ("a truck", "a bicycle", "a tractor", "a van"),
}


class Interval(NamedTuple):
    """A difference and what the bootstrap makes of its uncertainty."""

    mean: float
    low: float
    high: float


class Correctness(evaluate.Metric):
    """Accuracy and macro F1. `evaluate.load` would fetch its code from the Hub, this needs none."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = {key: datasets.Value("int64") for key in ("predictions", "references")}
        return evaluate.MetricInfo(
            description="Accuracy and macro F1.",
            citation="",
            inputs_description="Predicted and true classes.",
            features=datasets.Features(kinds),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average="macro")),
        }


def metric() -> Correctness:
    """The metric for one process, which leaves no file behind."""
    return Correctness(keep_in_memory=True)


def read_rows(path: str | Path, *, columns: Sequence[str] | None = None) -> datasets.Dataset:
    """Rows of a local file.

    Args:
        path: A .tsv file as GLUE has it, without quoting, or .csv, .json or .jsonl.
        columns: Names of the columns of a .tsv or .csv file without a header; None if its first
            line is a header.

    Returns:
        The rows.

    Raises:
        ValueError: If the ending is another one.
    """
    path = Path(path)
    if path.suffix in (".json", ".jsonl"):
        return datasets.Dataset.from_json(str(path))
    if path.suffix not in (".tsv", ".csv"):
        raise ValueError(f"rows must be in .tsv, .csv, .json or .jsonl, got {path.name!r}")
    tabs = {"sep": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    # "null" and "NA" are words in a sentence
    names = {"names": list(columns), "header": None} if columns else {}
    return datasets.Dataset.from_csv(str(path), keep_default_na=False, **tabs, **names)


def first_lines(path: Path, count: int = 1000) -> list[list[str]]:
    """The fields of the first lines of a .tsv or .csv file, at least one line.

    Args:
        path: The file.
        count: Lines to read, at most.

    Returns:
        The fields, line by line; one empty field if the file is empty.
    """
    options: dict[str, Any] = {}
    if path.suffix == ".tsv":
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(islice(csv.reader(file, **options), count)) or [[""]]


def find_file(folder: str | Path, *names: str) -> Path:
    """The first file in a folder with one of these names and a known ending."""
    for name in names:
        for ending in (".tsv", ".csv", ".json", ".jsonl"):
            if (found := Path(folder) / (name + ending)).exists():
                return found
    raise FileNotFoundError(
        f"{str(folder)!r} holds no {' or '.join(names)} as .tsv, .csv, .json or .jsonl"
    )


def check_settings(folder: Path, arguments: Any) -> None:
    """Refuses a folder that was begun with another setting, which would be mixed up with ours."""
    ours = {key: value for key, value in asdict(arguments).items() if key not in FREE}
    file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_json(file, ours)
        return
    theirs = {key: it for key, it in json.loads(file.read_text()).items() if key not in FREE}
    if theirs != ours:
        changed = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        raise SystemExit(
            f"{folder} holds results with another {', '.join(sorted(changed))}; "
            "pass another --output_dir"
        )


@contextmanager
def needs_hub(name: str, local: str = LOCAL_OPTIONS) -> Iterator[None]:
    """Ends the program with one message where the Hub cannot give what is loaded inside."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SystemExit(
            f"{name!r} is not on this machine and the Hub did not give it: {reason[0]}\n"
            f"Without the Hub: --embedded (small built-in data and model), or {local}."
        ) from error


def load_hub(name: str, config: str | None = None, *, split: str) -> datasets.Dataset:
    """One split of a Hub dataset."""
    with needs_hub(name):
        return datasets.load_dataset(name, config, split=split)


def entailment() -> dict[str, datasets.Dataset]:
    """A small set of sentence pairs with columns text, text2, label, in splits train and dev.

    What is said of a thing holds for its kind and for no other. Two verbs of the dev pairs are
    never trained on.
    """
    splits: dict[str, list[dict[str, str]]] = {"train": [], "dev": []}
    for number, (who, did, kind) in enumerate(product(WHO, DID, KINDS)):
        other = [name for name in KINDS if name != kind][number % 3]
        thing = KINDS[kind][number % 4]
        for claimed, label in ((kind, "entailment"), (other, "not_entailment")):
            pair = {"text": f"The {who} {did} {thing}.", "text2": f"The {who} {did} {claimed}."}
            splits["dev" if did in DID[-2:] else "train"].append(pair | {"label": label})
    return {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}


def shuffled_labels(labels: Sequence[int], share: float, *, seed: int) -> list[int]:
    """Labels with those of a random share of the rows permuted among these rows."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    generator = np.random.default_rng(seed)
    noisy = np.array(labels)
    rows = generator.permutation(len(noisy))[: round(share * len(noisy))]
    noisy[rows] = noisy[generator.permutation(rows)]
    return noisy.tolist()


def paired_bootstrap(
    ours: ArrayLike, base: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Difference of two mean correctnesses, with its percentile interval.

    Args:
        ours: Correctness of every example, shape (examples,) or (seeds, examples).
        base: The same examples (and seeds) under the model to compare with.
        draws: Resamples.
        level: Share of the resampled differences inside the interval.
        seed: Of the resampling.

    Returns:
        The difference and the interval. Examples are resampled, with all seeds of one together:
        the seeds share the examples, and are no further examples.
    """
    ours, base = np.atleast_2d(np.asarray(ours, float)), np.atleast_2d(np.asarray(base, float))
    if ours.shape != base.shape or not ours.size:
        raise ValueError(f"need the same examples twice, got shapes {ours.shape}, {base.shape}")
    # a resample is told by how often it holds each value that a difference takes
    values, counts = np.unique((ours - base).mean(0).round(12), return_counts=True)
    examples = ours.shape[1]
    generator = np.random.default_rng(seed)
    means = generator.multinomial(examples, counts / examples, size=draws) @ values / examples
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values @ counts / examples), float(low), float(high))
