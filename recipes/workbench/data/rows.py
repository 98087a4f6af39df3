"""Rows of local files and of the Hub."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

LOCAL_OPTIONS = "--data_dir FOLDER and --model FOLDER (files on this machine)"


def read_rows(path: str | Path, *, columns: Sequence[str] | None = None) -> datasets.Dataset:
    """Rows of a local file.

    Args:
        path: A .tsv file without quoting, as in GLUE, or a .csv, .json or .jsonl file.
        columns: Names of the columns of a .tsv or .csv file without a header; None if its first
            line is a header.

    Returns:
        The rows.

    Raises:
        ValueError: If the file has another ending.
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
    """The fields of the first lines of a .tsv or .csv file.

    Args:
        path: The file.
        count: The most lines to read.

    Returns:
        The fields, line by line; a line with one empty field if the file is empty.
    """
    options: dict[str, Any] = {}
    if path.suffix == ".tsv":
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(islice(csv.reader(file, **options), count)) or [[""]]


def find_file(folder: str | Path, *names: str) -> Path:
    """The first file in a folder with one of these names and an ending that `read_rows` knows."""
    for name in names:
        for ending in (".tsv", ".csv", ".json", ".jsonl"):
            if (found := Path(folder) / (name + ending)).exists():
                return found
    raise FileNotFoundError(
        f"{str(folder)!r} holds no file {' or '.join(names)} with the ending .tsv, .csv, .json or "
        ".jsonl"
    )


@contextmanager
def needs_hub(name: str, local: str = LOCAL_OPTIONS) -> Iterator[None]:
    """End the program with one message if the `with` block cannot load its data from the Hub."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SystemExit(
            f"{name!r} is not on this machine and could not be loaded from the Hub: "
            f"{reason[0]}\nWithout the Hub: --embedded (small built-in data and model), or {local}."
        ) from error


def load_hub(name: str, config: str | None = None, *, split: str) -> datasets.Dataset:
    """Load one split of a dataset from the Hub."""
    with needs_hub(name):
        return datasets.load_dataset(name, config, split=split)
