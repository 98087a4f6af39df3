from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.data.glue import DataArguments, read_task

import pytest


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(folder: Path, task: str, text: str, ending: str = "tsv") -> Any:
    for name in ("train", "dev"):
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8-sig")
    rows = read_task(DataArguments(data_dir=str(folder)), task)["train"]
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    ("task", "text", "first"),
    [
        ("sst2", 'a "fine film\t1\na bad one\t0\n', ('a "fine film', 1)),
        (
            "rte",
            "one\ttwo\tentailment\na\tb\tother\nc\td\tentailment\n",
            ("one", "two", "entailment"),
        ),
        ("sst2", "sentence\tlabel\nfine\t1\n", ("fine", 1)),
        ("sst2", "label\tsentence\n1\tfine\n", ("fine", 1)),
    ],
)
def test_a_first_line_is_a_row_or_a_header(
    tmp_path: Path, task: str, text: str, first: Any
) -> None:
    rows = read(tmp_path, task, text)
    assert rows[0] == first
    header = any(name in text.splitlines()[0] for name in ("sentence", "label"))
    assert len(rows) == len(text.splitlines()) - header


def test_a_headerless_csv_keeps_its_quoting(tmp_path: Path) -> None:
    rows = read(tmp_path, "sst2", '"one, two",1\nthree,0\n', ending="csv")
    assert rows == [("one, two", 1), ("three", 0)]


@pytest.mark.parametrize(
    "text", ["review\tsentiment\nfine\t1\n", "7\tfine\t1\n8\tbad\t0\n", "only one column\n", ""]
)
def test_another_first_line_is_refused_with_the_remedy(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        SystemExit, match=r"train\.tsv is neither a header with sentence, label .* put"
    ):
        read(tmp_path, "sst2", text)
