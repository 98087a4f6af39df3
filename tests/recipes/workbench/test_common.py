from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return importlib.import_module("workbench.common")


def test_a_tsv_has_no_quoting_no_byte_order_mark_and_no_missing_words(
    common: Any, tmp_path: Path
) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('Quality\ttext\n1\tsaid "no" to\n0\tnull\n1\t"open\n', encoding="utf-8-sig")
    rows = common.read_rows(file)
    assert rows.column_names == ["Quality", "text"]
    assert list(rows["text"]) == ['said "no" to', "null", '"open']
    assert list(rows["Quality"]) == [1, 0, 1]


def test_a_csv_has_quoting_and_json_lines_are_read(common: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, two",1\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x", "label": 0}\n{"text": "y", "label": 1}\n')
    assert common.read_rows(tmp_path / "a.csv")[0] == {"text": "one, two", "label": 1}
    assert list(common.read_rows(tmp_path / "b.jsonl")["label"]) == [0, 1]
    with pytest.raises(ValueError, match=r"\.tsv, \.csv, \.json or \.jsonl, got 'c\.txt'"):
        common.read_rows(tmp_path / "c.txt")


def test_the_first_known_name_is_found(common: Any, tmp_path: Path) -> None:
    (tmp_path / "validation.csv").touch()
    assert common.find_file(tmp_path, "dev", "validation").name == "validation.csv"
    (tmp_path / "dev.jsonl").touch()
    assert common.find_file(tmp_path, "dev", "validation").name == "dev.jsonl"
    with pytest.raises(FileNotFoundError, match="holds no test as"):
        common.find_file(tmp_path, "test")


def test_an_unreachable_hub_names_what_works_without_it(common: Any) -> None:
    with pytest.raises(SystemExit) as stop, common.needs_hub("some/model"):
        raise OSError("no route\nand more")
    message = str(stop.value)
    assert all(
        part in message
        for part in ("'some/model'", "no route", "--embedded", "--data_dir", "--model")
    )
    assert "and more" not in message


def test_the_metric_counts_and_averages_over_classes(common: Any) -> None:
    scores = common.metric().compute(predictions=[1, 1, 1, 0], references=[1, 1, 0, 0])
    # class 1: precision 2/3, recall 1; class 0: precision 1, recall 1/2
    assert scores == {"accuracy": 0.75, "f1": pytest.approx((0.8 + 2 / 3) / 2)}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noise_permutes_the_labels_of_its_share(common: Any, share: float) -> None:
    labels = list(range(1000))
    noisy = common.shuffled_labels(labels, share, seed=3)
    moved = sum(one != other for one, other in zip(labels, noisy, strict=True))
    assert sorted(noisy) == labels
    # a random permutation has one fixed point on average, more than 10 with probability 1e-8
    assert 1000 * share - 10 <= moved <= 1000 * share
    assert noisy == common.shuffled_labels(labels, share, seed=3)
    assert not share or noisy != common.shuffled_labels(labels, share, seed=4)


def test_noise_beyond_all_rows_is_refused(common: Any) -> None:
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 1.5"):
        common.shuffled_labels([0, 1], 1.5, seed=0)


def test_the_interval_is_that_of_the_normal_law(common: Any) -> None:
    base = np.zeros(2000)
    ours = np.zeros(2000)
    ours[:200] = 1  # 10 % better, so each example has variance 0.1 * 0.9
    interval = common.paired_bootstrap(ours, base)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 2000)
    # 10,000 draws place a 2.5 % quantile within 0.07 standard deviations, the grid within 1/2000
    assert interval.mean == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1 - half, abs=0.1 * half + 1 / 2000)
    assert interval.high == pytest.approx(0.1 + half, abs=0.1 * half + 1 / 2000)
    few = [common.paired_bootstrap(ours, base, draws=10, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_the_bootstrap_resamples_examples_and_pairs_them(common: Any) -> None:
    generator = np.random.default_rng(0)
    ours, base = generator.random((2, 3, 300)) < 0.8
    rows = generator.integers(300, size=(4000, 300))  # the naive way: examples, all seeds at once
    means = (ours.mean(0) - base.mean(0))[rows].mean(1)
    interval = common.paired_bootstrap(ours, base, level=0.9)
    assert interval.mean == pytest.approx(ours.mean() - base.mean())
    assert interval[1:] == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=0.1 * means.std())


def test_a_seed_adds_no_examples(common: Any) -> None:
    ours, base = np.random.default_rng(1).random((2, 500)) < 0.7
    once = common.paired_bootstrap(ours, base)
    assert common.paired_bootstrap([ours] * 3, [base] * 3) == pytest.approx(once)


def test_the_bootstrap_wants_the_same_examples(common: Any) -> None:
    with pytest.raises(ValueError, match="the same examples twice"):
        common.paired_bootstrap([1, 0], [1, 0, 1])


def test_the_built_in_set_is_true_balanced_and_split_by_verb(common: Any) -> None:
    splits = common.entailment()
    kinds = {thing: kind for kind, things in common.KINDS.items() for thing in things}
    verbs = {}
    for name, rows in splits.items():
        assert sorted(rows["label"]).index("not_entailment") == len(rows) / 2
        verbs[name] = {text.split()[2] for text in rows["text"]}
        for row in rows:
            said, claimed = (
                " ".join(row[key].rstrip(".").split()[3:]) for key in ("text", "text2")
            )
            assert (kinds[said] == claimed) == (row["label"] == "entailment")
    assert not verbs["train"] & verbs["dev"]
