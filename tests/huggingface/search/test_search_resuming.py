"""Searches that go on from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hf_rmt import search
from tests.huggingface.search.search_blocks import CONFIG, GRID, Blocks, Metric, losses


def test_a_search_that_was_cut_off_is_picked_up(tmp_path: Path) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    tolerance = sum(losses()[0.5]) * 1.2
    whole = Metric(model)
    expected = search(model, whole, tolerance=tolerance, config=CONFIG, fractions=GRID)
    metric = Metric(model)

    def cut(model: nn.Module) -> float:
        if metric.calls == 6:
            raise KeyboardInterrupt
        return metric(model)

    with pytest.raises(KeyboardInterrupt):
        search(model, cut, tolerance=tolerance, config=CONFIG, fractions=GRID, resume_from=path)
    assert len(json.loads(path.read_text())["evaluations"]) == 6
    result = search(
        model, metric, tolerance=tolerance, config=CONFIG, fractions=GRID, resume_from=path
    )
    assert metric.calls == whole.calls
    assert result == expected
    again = search(
        model, metric, tolerance=tolerance, config=CONFIG, fractions=GRID, resume_from=path
    )
    assert (again, metric.calls) == (expected, whole.calls)
    assert [entry.name for entry in tmp_path.iterdir()] == ["search.json"]


def test_a_resumed_search_may_be_given_more_evaluations(tmp_path: Path) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    tolerance, metric = sum(losses()[0.5]) * 1.2, Metric(model)
    options: dict[str, Any] = {"tolerance": tolerance, "fractions": GRID, "config": CONFIG}
    first = search(model, metric, max_evaluations=6, resume_from=path, **options)
    more = search(model, metric, resume_from=path, **options)
    whole = search(model, Metric(model), **options)
    assert more.evaluations[:6] == first.evaluations
    assert more.removal == whole.removal
    assert len(more.evaluations) == metric.calls <= len(whole.evaluations) + 1


def test_the_second_measurement_counts_when_it_is_read_from_the_file(tmp_path: Path) -> None:
    model, values = Blocks(), iter((0.0, 0.0, 0.3, 0.2))
    options: dict[str, Any] = {"tolerance": 0.1, "config": CONFIG, "fractions": (0.5,)}
    options["resume_from"] = tmp_path / "search.json"
    first = search(model, lambda model: next(values), **options)
    assert first.metric == 0.3
    assert search(model, lambda model: next(values), **options) == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tolerance": 0.2}, r"tolerance \(0\.1, now 0\.2\)"),
        ({"fractions": (0.5, 1.0)}, "fractions"),
        ({"config": CONFIG.replace(max_rank=9)}, r"max_rank \(None, now 9\)"),
        ({"model": "other weights"}, "weights_digest"),
        ({"model": "other class"}, r"model \(Blocks, now Other\)"),
    ],
)
def test_the_file_of_another_search_is_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    options: dict[str, Any] = {
        "tolerance": 0.1,
        "fractions": GRID,
        "config": CONFIG,
        "resume_from": path,
    }
    search(model, lambda model: 0.0, **options)
    other = change.pop("model", None)
    if other == "other weights":
        model.blocks[0][0].bias.data[0] += 1
    if other == "other class":
        model.__class__ = type("Other", (Blocks,), {})
    with pytest.raises(ValueError, match=f"belongs to another search, which differs in {named}"):
        search(model, lambda model: 0.0, **(options | change))


def test_a_file_that_knows_of_one_setting_more_is_refused(tmp_path: Path) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    options: dict[str, Any] = {"tolerance": 0.1, "config": CONFIG, "fractions": (0.5,)}
    options["resume_from"] = path
    search(model, lambda model: 0.0, **options)
    content = json.loads(path.read_text())
    content["search"]["patience"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"differs in patience \(3, now None\)"):
        search(model, lambda model: 0.0, **options)


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "bytes": lambda text: "\x00\x01",
    "a list": lambda text: "[1]",
    "a number": lambda text: "3",
    "search is a number": lambda text: json.dumps({**json.loads(text), "search": 3}),
    "search is missing": lambda text: json.dumps({"evaluations": []}),
}
for name, evaluations in {
    "a number": 3,
    "numbers": [3],
    "null": None,
    "no removal": [{"metric": 1.0}],
    "no metric": [{"removal": {}}],
    "removal is a number": [{"removal": 3, "metric": 1.0}],
    "removal is a list": [{"removal": ["blocks"], "metric": 1.0}],
    "a fraction is a text": [{"removal": {"blocks": "much"}, "metric": 1.0}],
    "a metric is a text": [{"removal": {}, "metric": "good"}],
    "a metric is a list": [{"removal": {}, "metric": [1.0]}],
}.items():
    DAMAGE[f"evaluations: {name}"] = lambda text, found=evaluations: json.dumps(
        {**json.loads(text), "evaluations": found}
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "search.json"
    options: dict[str, Any] = {"tolerance": 0.1, "config": CONFIG, "fractions": (0.5,)}
    options["resume_from"] = path
    search(Blocks(), lambda model: 0.0, **options)
    path.write_text(DAMAGE[kind](path.read_text()))
    damaged = (
        r"search\.json is damaged or is not a file of a search \(.*\); delete it to start anew"
    )
    with pytest.raises(ValueError, match=damaged):
        search(Blocks(), lambda model: 0.0, **options)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is not a file of a search"):
        search(Blocks(), lambda model: 0.0, tolerance=0.1, resume_from=path)
