from __future__ import annotations

import pytest

from hf_rmt.compression.targets.names import check_found, is_covered, is_selected, nearest, some

KNOWN = ["", "bert", "bert.encoder.layer.0", "bert.encoder.layer.0.query", "classifier"]


@pytest.mark.parametrize(
    ("targets", "selected"),
    [
        (["query"], True),
        (["0.query"], True),
        (["uery"], False),
        (["layer.0"], False),
        (r".*\.query", True),
        (r"query", False),
    ],
)
def test_endings_and_whole_expressions_select(targets: list[str] | str, selected: bool) -> None:
    assert is_selected("bert.encoder.layer.0.query", targets) is selected


@pytest.mark.parametrize(
    ("cover", "covered"),
    [("bert", True), ("layer.0", True), ("layer.1", False), ("layer", True), ("query", True)],
)
def test_a_name_covers_what_is_below_it(cover: str, covered: bool) -> None:
    assert is_covered("bert.encoder.layer.0.query", [cover]) is covered
    assert not is_covered("bert.encoder.layer.10.query", ["layer.1"])


def test_a_name_that_no_module_has_is_refused_with_near_ones() -> None:
    check_found("option", ["layer.0", "bert"], KNOWN)
    with pytest.raises(ValueError, match=r"option names 'clasifier'.*did you mean classifier"):
        check_found("option", ["bert", "clasifier"], KNOWN)
    assert nearest("encoder.layer.0.qery", KNOWN).startswith("did you mean encoder.layer.0.query")
    assert nearest("zzz", ["a", "b"]) == "choose among a, b"
    assert some([*"abcdefg"]) == "a, b, c, d, e, ... (7 in all)"


def test_an_empty_name_selects_nothing_and_is_never_proposed():
    assert not any(is_selected(name, [""]) for name in KNOWN)
    assert not any(is_covered(name, [""]) for name in KNOWN)
    with pytest.raises(ValueError, match=r"option names ''.*choose among bert, bert\.encoder"):
        check_found("option", [""], KNOWN)
    assert nearest("nope", KNOWN).startswith("choose among bert, ")
