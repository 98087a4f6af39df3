from __future__ import annotations

import re

import pytest

from hf_rmt.report import CompressionReport
from hf_rmt.report.verdicts import UNKNOWN, VERDICTS, explanation, explanations, footnotes
from hf_rmt.spectra import Phase


@pytest.mark.parametrize("phase", list(Phase))
def test_every_verdict_has_one_sentence_that_says_what_to_do(phase):
    text = VERDICTS[phase]
    assert explanation(str(phase)) == text != UNKNOWN
    assert re.fullmatch(r"[A-Z][^.!?]*\.", text)
    assert re.search(r"\b(store|keep|leave|use|check|drop)\b", text)


def test_an_unknown_verdict_is_not_made_up():
    assert explanation("something newer") == UNKNOWN


def test_verdicts_are_counted_and_the_most_frequent_comes_first():
    found = explanations(["random", "no law", "", "no law"])
    assert list(found.items()) == [
        ("no law", (2, VERDICTS[Phase.LAWLESS])),
        ("random", (1, VERDICTS[Phase.RANDOM])),
    ]
    lines = footnotes(["random", "no law", "no law"]).splitlines()
    assert lines[0].startswith("no law (2): No noise law")
    assert all(len(line) <= 100 for line in lines)
    assert footnotes([""]) == ""


def test_tables_explain_the_verdicts_in_them(report, plan):
    for phase in ("bulk+spikes", "random", "heavy-tailed", "degenerate"):
        assert f"\n{phase} (" in report.table()
    assert " ".join(report.explain().split()).count(VERDICTS[Phase.HEAVY_TAILED]) == 1
    assert "bulk+spikes (3): Some directions" in CompressionReport(plan).table()
