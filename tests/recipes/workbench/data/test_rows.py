from __future__ import annotations

from pathlib import Path

from workbench.data.rows import find_file, needs_hub, read_rows

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_tsv_has_no_quoting_no_byte_order_mark_and_no_missing_words(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('Quality\ttext\n1\tsaid "no" to\n0\tnull\n1\t"open\n', encoding="utf-8-sig")
    rows = read_rows(file)
    assert rows.column_names == ["Quality", "text"]
    assert list(rows["text"]) == ['said "no" to', "null", '"open']
    assert list(rows["Quality"]) == [1, 0, 1]


def test_a_csv_has_quoting_and_json_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, two",1\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x", "label": 0}\n{"text": "y", "label": 1}\n')
    assert read_rows(tmp_path / "a.csv")[0] == {"text": "one, two", "label": 1}
    assert list(read_rows(tmp_path / "b.jsonl")["label"]) == [0, 1]
    with pytest.raises(ValueError, match=r"\.tsv, \.csv, \.json or \.jsonl, got 'c\.txt'"):
        read_rows(tmp_path / "c.txt")


def test_the_first_known_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "validation.csv").touch()
    assert find_file(tmp_path, "dev", "validation").name == "validation.csv"
    (tmp_path / "dev.jsonl").touch()
    assert find_file(tmp_path, "dev", "validation").name == "dev.jsonl"
    with pytest.raises(FileNotFoundError, match="holds no file test with"):
        find_file(tmp_path, "test")


def test_an_unreachable_hub_names_what_works_without_it() -> None:
    with pytest.raises(SystemExit) as stop, needs_hub("some/model"):
        raise OSError("no route\nand more")
    message = str(stop.value)
    assert all(
        part in message
        for part in ("'some/model'", "no route", "--embedded", "--data_dir", "--model")
    )
    assert "and more" not in message
