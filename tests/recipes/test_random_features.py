from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import Ridge

from hf_rmt import TernaryRandomFeatures

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("random_features")


@pytest.fixture
def ridge(recipe: Any) -> Any:
    return importlib.import_module("workbench.models.ridge")


def called(recipe: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["random_features.py", *options])
    recipe.main()


def test_strengths_weaker_than_rounding_are_left_out(ridge: Any) -> None:
    generator = np.random.default_rng(0)
    features = np.outer(generator.standard_normal(20_000), generator.standard_normal(300))
    rows = ridge.Rows((features + 3).astype(np.float32), features[:, :1].astype(np.float32))
    readouts = list(ridge.ridge_path(rows))
    assert 1 <= len(readouts) < len(ridge.STRENGTHS)
    assert readouts[-1].strength == max(ridge.STRENGTHS)
    assert all(np.isfinite(readout.weights).all() for readout in readouts)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_the_ridge_is_that_of_scikit_learn(ridge, shape):
    generator = np.random.default_rng(0)
    rows = ridge.Rows(
        1 + generator.standard_normal(shape), generator.standard_normal((shape[0], 3))
    )
    new = generator.standard_normal((5, shape[1]))
    unit = np.square(rows.features - rows.features.mean(0)).sum(1).mean()
    for readout, strength in zip(ridge.ridge_path(rows), ridge.STRENGTHS, strict=True):
        wanted = Ridge(strength * unit).fit(*rows).predict(new)
        np.testing.assert_allclose(readout(new), wanted, rtol=1e-7, atol=1e-9)
    chosen = ridge.fit_ridge(rows, rows, lambda found, wanted: np.square(found - wanted).mean())
    assert chosen.strength == min(ridge.STRENGTHS)


def test_low_precision_features_are_rounded_fourier_features(recipe):
    data = np.random.default_rng(0).standard_normal((50, 12))
    options = {"n_components": 200, "gamma": 0.05, "random_state": 0}
    wanted = RBFSampler(**options).fit(data)
    for bits, tolerance in ((1, 1.0), (2, 0.5), (8, 0.01)):
        found = recipe.LowPrecisionFourier(bits=bits, **options).fit(data)
        assert len(np.unique(found.random_weights_.round(9))) <= 2**bits
        assert len(np.unique(found.transform(data).round(9))) <= 2**bits
        weights = wanted.random_weights_
        # Max 1960: the best uniform quantiser of a normal variable loses 0.363, 0.119, 5e-5 of it
        loss = np.square(found.random_weights_ - weights).mean() / weights.var()
        assert loss == pytest.approx({1: 0.363, 2: 0.119, 8: 5e-5}[bits], rel=0.5)
        difference = np.abs(found.transform(data) - wanted.transform(data)).mean()
        assert difference < tolerance * np.abs(wanted.transform(data)).mean()


def test_rounding_takes_the_nearest_level(recipe):
    values = np.linspace(-3, 3, 301)
    levels = 0.5 * (np.arange(-4, 4) + 0.5)
    nearest = np.abs(values[:, None] - levels).min(1)
    found = importlib.import_module("workbench.models.low_precision").rounded(values, 0.5, 3)
    np.testing.assert_allclose(np.abs(found - values), nearest, atol=1e-12)


def test_bits_are_counted(recipe):
    data = np.random.default_rng(0).standard_normal((40, 12))
    options = {"n_components": 16, "gamma": 0.05, "random_state": 0}
    counts = {
        RBFSampler(**options): (32 * 16 * 13, 32 * 16),
        recipe.LowPrecisionFourier(bits=4, **options): (4 * 16 * 12 + 32 * 16, 4 * 16),
        Nystroem(**options): (32 * 16 * 12 + 32 * 16 * 16, 32 * 16),
        TernaryRandomFeatures(**options): (2 * 16 * 16 + 64 * 12 + 64 * 5, 2 * 16),
    }
    for features, bits in counts.items():
        assert recipe.map_and_feature_bits(features.fit(data), 12) == bits
    run = recipe.Run("Fourier", 16, 0, 0.5, 1.0, 1.0, *bits, 99)
    assert run.memory(10) == (bits[0] + 10 * bits[1] + 99) / 1e6


def test_a_table_of_words_and_numbers(recipe, monkeypatch, tmp_path, capsys):
    generator = np.random.default_rng(0)
    x, words = generator.standard_normal(300), generator.choice(["a", "b", "c"], 300)
    y = np.where(words == "a", 3.0, -1.0) + 0.5 * x
    file = tmp_path / "table.csv"
    rows = [f"{a},{b},{c}" for a, b, c in zip(y, words, x, strict=True)]
    file.write_text("\n".join(["y,word,x", *rows]))
    options = ["--data_dir", str(file), "--seeds", "0", "--bits", "8", "--sparsity", "0"]
    options += ["--features", "60", "400", "--gammas", "0.3", "--output_dir", str(tmp_path / "out")]
    called(recipe, monkeypatch, *options, "--target", "y")
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    errors = {(cell["method"], cell["column"]): cell["values"][0] for cell in cells}
    assert "300 x 4" in capsys.readouterr().out
    assert errors["Fourier", "400 features"] < 0.05  # of a variance of 1
    assert ("Nystrom", "400 features") not in errors  # of 203 training rows
    with pytest.raises(SystemExit, match="--target must be one of y, word, x, got 'z'"):
        called(recipe, monkeypatch, *options, "--target", "z")


def test_the_embedded_study_runs_once(recipe, monkeypatch, tmp_path):
    options = ["--embedded", "--seeds", "0", "--features", "40", "160", "--bits", "2"]
    options += ["--gammas", "0.3", "--sparsity", "0.5", "--output_dir", str(tmp_path)]
    called(recipe, monkeypatch, *options)
    cells = json.loads((tmp_path / "results.json").read_text())["results"]
    errors = {(cell["method"], cell["column"]): cell["values"][0] for cell in cells}
    ours = ("ternary, sparsity 0.5", "exact steps, sparsity 0.5")
    for method in ("Fourier", "Fourier, 2 bits", "Nystrom", *ours):
        assert errors[method, "160 features"] < errors[method, "40 features"] < 1
    assert errors[ours[1], "160 features"] < errors[ours[0], "160 features"]
    assert (tmp_path / "errors.png").stat().st_size > 1000
    monkeypatch.setattr(recipe, "regression", None)
    called(recipe, monkeypatch, *options)
    with pytest.raises(SystemExit, match="another setting"):
        called(recipe, monkeypatch, *options, "--train_rows", "100")
