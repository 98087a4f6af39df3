from __future__ import annotations

import csv
import io

import pytest

from hf_rmt.report.tables import Share, aligned_table, cell, csv_text, markdown_table, percent

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


@pytest.mark.parametrize("table", [aligned_table, markdown_table])
@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_a_column_without_any_value_is_left_out(table, nothing):
    rows = [{"name": "key", "rank": nothing, "zero": 0}, {"name": "value", "rank": None, "zero": 0}]
    lines = table(rows).splitlines()
    assert "rank" not in lines[0]
    assert "zero" in lines[0]
    assert not any("-" in line for line in lines[2:])
    assert "rank" in csv_text(rows)


@pytest.mark.parametrize("sign", ["\n", "\r", "\x0b", "\x1b", "\u2028", "\x85", "\t"])
@pytest.mark.parametrize("table", [aligned_table, markdown_table])
def test_a_sign_that_breaks_lines_is_escaped(table, sign):
    lines = table([{"name": f"a{sign}b", "rank": 1}, {"name": "plain", "rank": 2}]).splitlines()
    assert len(lines) == 4
    assert sign not in lines[2]


@pytest.mark.parametrize("table", [aligned_table, markdown_table, csv_text])
def test_no_rows_make_no_table(table):
    assert table([]) == ""


@pytest.mark.parametrize("share", [-9e-7, -1.54e-15, 1e-300, 1e-16, 9.99e-4])
def test_little_is_neither_nothing_nor_negative(share):
    assert percent(share) == cell(Share(share)) == "< 0.1 %"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (-0.0, "0 %"),
        (1e-3, "0.1 %"),
        (0.5, "50 %"),
        (0.9995, "> 99.9 %"),
        (1.0, "100 %"),
        (1.2, "120 %"),
        (-0.05, "-5 %"),
        (float("nan"), "-"),
    ],
)
def test_only_zero_is_zero_and_only_all_is_all(share, text):
    assert percent(share).replace("-0", "0") == text


def test_a_share_is_a_number_in_files_and_percent_for_readers():
    rows = [{"x": Share(0.125)}]
    assert csv_text(rows) == "x\n0.125\n"
    assert aligned_table(rows).splitlines()[2] == "12.5 %"
