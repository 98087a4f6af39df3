"""GLUE tasks and SciTail as rows with the columns text, text2 (for pairs) and label."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.data.entailment import entailment
from workbench.data.label_noise import shuffled_labels
from workbench.data.rows import find_file, first_lines, load_hub, read_rows

import numpy as np
from datasets import Dataset


@dataclass(frozen=True)
class Task:
    """The text columns of a task, its defaults for training, its Hub data and published results."""

    texts: tuple[str, ...]
    epochs: float = 3
    max_length: int = 128
    hub: tuple[str, str | None] = ("nyu-mll/glue", None)
    label: str = "label"
    published: dict[str, float] = field(default_factory=dict)


PAIR = ("sentence1", "sentence2")


def _published(base: float, pdb: float, pub: float, slr: float, svd: float) -> dict[str, float]:
    """Accuracies by method in Wu, Zhu & Li (2025). BEMA and kernel share its number for PUB."""
    return {"base": base, "pdb": pdb, "bema": pub, "kernel": pub, "slr": slr, "svd": svd}


TASKS = {
    "rte": Task(PAIR, published=_published(0.7029, 0.7319, 0.7174, 0.7246, 0.7029)),
    "mrpc": Task(PAIR),
    "sst2": Task(("sentence",), epochs=2, max_length=64),
    "cola": Task(("sentence",), max_length=64),
    "qnli": Task(("question", "sentence")),
    "qqp": Task(("question1", "question2")),
    "mnli": Task(("premise", "hypothesis")),
    "wnli": Task(PAIR),
    "scitail": Task(
        ("premise", "hypothesis"),
        hub=("allenai/scitail", "tsv_format"),
        published=_published(0.9055, 0.9155, 0.9130, 0.9008, 0.9055),
    ),
}
COLUMNS = {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"}
"""Column names in the files of MRPC, where the label comes first, and the names used here."""
DEV = ("dev", "validation", "validation_matched")


@dataclass
class DataArguments:
    """Options that say which rows are read and how they are used."""

    task: list[str] = field(default_factory=lambda: ["rte"], metadata={"help": ", ".join(TASKS)})
    data_dir: str | None = field(default=None, metadata={"help": "folder with local files"})
    max_length: int | None = field(
        default=None, metadata={"help": "most tokens of a row; default: by task"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "most training rows; default: all"}
    )
    selection_samples: int = field(
        default=1000, metadata={"help": "training rows kept back for choices, at most a tenth"}
    )
    heldout_samples: int = field(
        default=0, metadata={"help": "training rows kept back as one more test, with clean labels"}
    )
    label_noise: float = field(default=0.0, metadata={"help": "share of labels to shuffle"})


def splits_of(
    arguments: DataArguments, task: str, seed: int
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits of a task (train, selection, dev, further tests) and the names of its labels."""
    raw = entailment() if task == "embedded" else read_task(arguments, task)
    labels = sorted({str(label) for label in raw["train"]["label"]})
    splits = {name: numbered(rows, labels) for name, rows in raw.items()}
    rows = splits.pop("train")
    rows = rows.select(np.random.default_rng(0).permutation(len(rows)))
    selection = min(arguments.selection_samples, len(rows) // 10)
    begin = selection + arguments.heldout_samples
    end = min(len(rows), begin + (arguments.max_train_samples or len(rows)))
    if arguments.heldout_samples:
        splits["heldout"] = rows.select(range(selection, begin))
    ours = rows.select([*range(selection), *range(begin, end)])
    noisy = shuffled_labels(ours["label"], arguments.label_noise, seed=seed)
    ours = ours.remove_columns("label").add_column("label", noisy)
    splits["selection"] = ours.select(range(selection))
    splits["train"] = ours.select(range(selection, len(ours)))
    return splits, labels


def read_task(arguments: DataArguments, task: str) -> dict[str, Dataset]:
    """The splits that a task itself has, from files or from the Hub."""
    if task not in TASKS:
        raise SystemExit(f"--task must be one of {', '.join(TASKS)}, got {task!r}")
    spec = TASKS[task]
    if arguments.data_dir is None:
        hub, config = spec.hub
        dev = "validation_matched" if task == "mnli" else "validation"
        splits = {
            name: load_hub(hub, config or task, split=split)
            for name, split in (("train", "train"), ("dev", dev))
        }
    else:
        folder = Path(arguments.data_dir)
        folder = folder / task if (folder / task).is_dir() else folder
        files = {"train": find_file(folder, "train"), "dev": find_file(folder, *DEV)}
        if list(folder.glob("test-labeled.*")):
            files["test"] = find_file(folder, "test-labeled")
        splits = {
            name: read_rows(file, columns=headless(file, spec)) for name, file in files.items()
        }
    return {name: columns_of(rows, spec) for name, rows in splits.items()}


def headless(file: Path, spec: Task) -> list[str] | None:
    """Names for the columns of a file whose first line is a row and not a header.

    A file without a header has the columns of the task: its texts, then the label. The first line
    is a row if it has as many fields as these columns, holds none of their names, and ends with a
    number or with the label of another line.

    Args:
        file: Rows of a task.
        spec: The task.

    Returns:
        The names; None if the first line is a header.

    Raises:
        SystemExit: If the first line is neither a header nor such a row.
    """
    first, *further = first_lines(file)
    known = {*spec.texts, spec.label, *COLUMNS}
    if file.suffix not in (".tsv", ".csv") or known & set(first):
        return None
    names, last = [*spec.texts, spec.label], first[-1].strip()
    is_label = last.lstrip("-").isdecimal() or last in {
        line[-1].strip() for line in further if line
    }
    if len(first) == len(names) and is_label:
        return names
    raise SystemExit(
        f"the first line of {file} is neither a header with {', '.join(names)} nor a row of "
        f"{len(names)} columns that ends with a label, got {first}; put a header above it"
    )


def columns_of(rows: Dataset, spec: Task) -> Dataset:
    """The rows with the columns text, text2 (for pairs) and label, whatever their names were."""
    rows = rows.rename_columns({old: new for old, new in COLUMNS.items() if old in rows.features})
    names = dict(zip((*spec.texts, spec.label), ("text", "text2")[: len(spec.texts)], strict=False))
    names[spec.label] = "label"
    if missing := set(names) - set(rows.column_names):
        raise SystemExit(
            f"the data lack the columns {sorted(missing)}; they have {rows.column_names}. Rename "
            "the columns, or pass another --task"
        )
    rows = rows.select_columns(list(names))
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def spec_of(task: str) -> Task:
    return TASKS.get(task, Task(("text", "text2"), max_length=64))


def length_of(arguments: DataArguments, task: str) -> int:
    return arguments.max_length or spec_of(task).max_length


def name_of(arguments: DataArguments, task: str) -> str:
    """Name of a task in tables and folders."""
    return f"{task}-noise{arguments.label_noise:g}" if arguments.label_noise else task


def numbered(rows: Dataset, labels: list[str]) -> Dataset:
    """The rows, with each label replaced by its position in `labels`."""
    numbers = [labels.index(str(label)) for label in rows["label"]]
    return rows.remove_columns("label").add_column("label", numbers)


def tokenized(rows: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    texts = [list(rows[key]) for key in ("text", "text2") if key in rows.column_names]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return Dataset.from_dict({**encoded, "labels": list(rows["label"])})


def by_length(rows: Dataset) -> Dataset:
    """The same rows in an order that needs little padding."""
    return rows.select(np.argsort([len(row) for row in rows["input_ids"]], kind="stable"))
