from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.processes import RECIPES


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("workbench.report.estimation_tables")


def test_the_likelihood_ratio_is_the_average_over_directions(tables: Any) -> None:
    """Differences between spectra by Monte Carlo over 200,000 directions, right to about 1 %."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((60, 20)) / np.sqrt(60)
    directions = generator.standard_normal((200_000, 20))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    averages, ratios = [], []
    for factor in (1.0, 1.3):
        values = tables.spectrum(weight * np.r_[factor, np.ones(19)])
        exponent = 60 * (1 - 1 / 1.8) / 2 * directions**2 @ values
        averages.append(np.log(np.mean(np.exp(exponent))))
        ratios.append(tables.likelihood_ratio(values, 1.8, 60))
    assert np.diff(ratios) == pytest.approx(np.diff(averages), rel=0.05)


def test_small_matrices_and_odd_noise_have_a_line_each(
    tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "NOISE_SHAPES", ((60, 40),))
    lines = list(tables.small_matrices(1))
    assert len(lines) == 2 + len(tables.BULKS) * len(tables.SMALL_SHAPES)
    assert all(set(line.split()[-6:]) <= {"0", "100"} for line in lines[2:])
    lines = list(tables.odd_noise(2))
    assert len(lines) == 2 + len(tables.noise_kinds((60, 40)))
    assert lines[2].split()[-2:] == ["2", "random"]


def test_a_weak_spike_has_a_line_for_each_strength(
    tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "FALSE_ALARM", 0.1)
    monkeypatch.setattr(tables, "STRENGTHS", (6.0,))
    monkeypatch.setattr(tables, "WEAK_SHAPE", (80, 40))
    _, _, line = tables.weak_spike(3)
    assert line.split()[:4] == ["6.0", "100%", "100%", "100%"]


def test_laws_are_told_apart_by_kind_of_layer(tables: Any) -> None:
    generator = np.random.default_rng(0)
    names = ("layer.0.intermediate.dense", "layer.0.attention.output.dense", "layer.0.mlp.fc1")
    layers = {name: generator.standard_normal((60, 40)) for name in names}
    for balanced in (False, True):
        lines = list(tables.law_table("noise", layers, balanced))
        assert [line.split()[:2] for line in lines[2:]] == [
            ["MLP", "(2)"],
            ["attention", "(1)"],
            ["all", "(3)"],
        ]
