from __future__ import annotations

import csv
import io

import pytest

from hf_rmt.report.tables import aligned_table, csv_text, markdown_table

ROWS = [
    {"name": "key", "rank": 12, "size_ratio": 1 / 3, "notes": "a|b"},
    {"name": "a.longer.name", "rank": None, "size_ratio": float("nan"), "notes": 'say "x", y'},
]


def test_columns_start_and_end_at_the_same_place():
    lines = aligned_table(ROWS).splitlines()
    assert lines[0] == "name           rank  size ratio  notes"
    assert lines[1] == "-------------  ----  ----------  --------------"[: len(lines[1])]
    assert lines[2].index("12") + 2 == lines[0].index("rank") + 4
    assert lines[3].split() == ["a.longer.name", "-", "-", "say", '"x",', "y"]
    assert lines[2].index("a|b") == lines[3].index("say") == lines[0].index("notes")
    assert "0.333" in lines[2]


def test_csv_keeps_full_precision_and_empties_what_is_missing():
    first, second = csv.DictReader(io.StringIO(csv_text(ROWS)))
    assert float(first["size_ratio"]) == 1 / 3
    assert (second["rank"], second["size_ratio"]) == ("", "")
    assert second["notes"] == ROWS[1]["notes"]


def test_markdown_escapes_bars_and_aligns_numbers():
    header, rule, first, _ = markdown_table(ROWS).splitlines()
    assert header == "| name | rank | size ratio | notes |"
    assert rule == "| --- | ---: | ---: | --- |"
    assert first == "| key | 12 | 0.333 | a\\|b |"


@pytest.mark.parametrize("table", [aligned_table, markdown_table, csv_text])
def test_no_rows_make_no_table(table):
    assert table([]) == ""
