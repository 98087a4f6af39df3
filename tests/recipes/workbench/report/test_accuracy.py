from __future__ import annotations

import math

from workbench.report.accuracy import metric, paired_bootstrap

import numpy as np
import pytest


def test_the_metric_counts_and_averages_over_classes() -> None:
    scores = metric().compute(predictions=[1, 1, 1, 0], references=[1, 1, 0, 0])
    # class 1: precision 2/3, recall 1; class 0: precision 1, recall 1/2
    assert scores == {"accuracy": 0.75, "f1": pytest.approx((0.8 + 2 / 3) / 2)}


def test_the_interval_is_that_of_the_normal_law() -> None:
    base = np.zeros(2000)
    ours = np.zeros(2000)
    ours[:200] = 1  # 10 % better, so each example has variance 0.1 * 0.9
    interval = paired_bootstrap(ours, base)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 2000)
    # 10,000 draws place a 2.5 % quantile within 0.07 standard deviations, the grid within 1/2000
    assert interval.mean == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1 - half, abs=0.1 * half + 1 / 2000)
    assert interval.high == pytest.approx(0.1 + half, abs=0.1 * half + 1 / 2000)
    few = [paired_bootstrap(ours, base, draws=10, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_the_bootstrap_resamples_examples_and_pairs_them() -> None:
    generator = np.random.default_rng(0)
    ours, base = generator.random((2, 3, 300)) < 0.8
    rows = generator.integers(300, size=(4000, 300))  # the naive way: examples, all seeds at once
    means = (ours.mean(0) - base.mean(0))[rows].mean(1)
    interval = paired_bootstrap(ours, base, level=0.9)
    assert interval.mean == pytest.approx(ours.mean() - base.mean())
    assert interval[1:] == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=0.1 * means.std())


def test_a_seed_adds_no_examples() -> None:
    ours, base = np.random.default_rng(1).random((2, 500)) < 0.7
    once = paired_bootstrap(ours, base)
    assert paired_bootstrap([ours] * 3, [base] * 3) == pytest.approx(once)


def test_the_bootstrap_wants_the_same_examples() -> None:
    with pytest.raises(ValueError, match="the same examples twice"):
        paired_bootstrap([1, 0], [1, 0, 1])
