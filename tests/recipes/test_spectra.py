from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_rmt
from tests.processes import RECIPES, succeed

LAYER = "encoder.layer.{}.attention.self.query"
METHODS = ["PDB", "PDB, published", "PUB, BEMA", "PUB, kernel"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, trained_bert: Path) -> Path:
    """Folder of the recipe on the queries of two blocks, run in a process of its own."""
    folder = tmp_path_factory.mktemp("spectra")
    options = ["--layers", LAYER.format(1), "--target_modules", LAYER.format(0), LAYER.format(1)]
    succeed(RECIPES / "spectra.py", "--embedded", *options, "--output_dir", folder)
    return folder


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("workbench.report.spectra_tables")


def row(layer: str, method: str, population: str, distance: float, gammas: Any) -> dict[str, Any]:
    """A row of the recipe in which every measured moment is 1, but the second is 3."""
    found = {f"gamma{k}": gamma for k, gamma in enumerate(gammas, start=1)}
    measured = {"gamma1_measured": 1.0, "gamma2_measured": 3.0, "gamma3_measured": 1.0}
    head = {"layer": layer, "shape": "4 x 4", "method": method, "population": population}
    return {**head, "aspect_ratio": 1.0, "distance": distance, **found, **measured}


def rows_of(tables: Any, distances: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows in which PDB errs by 10 %, the others by 20 %, of every moment."""
    return [
        row(f"layer.{k}", method, population, distance, (right, 3 * right, right))
        for method, values in distances.items()
        for k, distance in enumerate(values)
        for population in tables.POPULATIONS
        for right in [1.1 if method == "PDB" else 0.8]
    ]


def test_one_command_writes_tables_and_figures(written: Path) -> None:
    figures = {
        f"{name}{dark}.{kind}"
        for name in ("laws", "laws-roots", "distances", "moments")
        for dark in ("", "-dark")
        for kind in ("svg", "pdf")
    }
    texts = {"layers.csv", "results.json", "results.md"}
    assert {path.name for path in written.iterdir()} == figures | texts
    svg = (written / "laws.svg").read_text()
    assert "units of the weight, squared" in svg
    assert all(name in svg for name in METHODS)


def test_rows_hold_the_fits_of_the_model(written: Path, trained_bert: Path) -> None:
    from safetensors.numpy import load_file

    from hf_rmt.spectra import fit_double_bulk, fit_unit_bulk

    weight = load_file(trained_bert / "model.safetensors")[f"{LAYER.format(1)}.weight"]
    eigenvalues = np.linalg.svd(weight.astype(float), compute_uv=False) ** 2
    ours, bema = (fit(eigenvalues, weight.shape) for fit in (fit_double_bulk, fit_unit_bulk))
    with (written / "layers.csv").open() as file:
        cells = {
            (cell["method"], cell["population"]): cell
            for cell in csv.DictReader(file)
            if cell["layer"] == LAYER.format(1)
        }
    assert {method for method, _ in cells} == set(METHODS)

    def close(method: str, population: str, column: str, value: float) -> None:
        assert float(cells[method, population][column]) == pytest.approx(value, rel=1e-5)

    close("PDB", "own noise", "distance", ours.distance)
    close("PUB, BEMA", "BEMA's noise", "distance", bema.distance)
    close("PUB, BEMA", "own noise", "gamma2", bema.law.moment(2))
    close("PUB, BEMA", "PDB's noise", "gamma2_measured", np.mean(ours.noise**2))
    close("PDB", "whole", "gamma3", ours.moment(3))
    close("PDB", "whole", "gamma3_measured", np.mean(eigenvalues**3))
    close("PDB", "as published", "gamma3", ours.noise_law.moment(3))
    close("PDB", "as published", "gamma3_measured", np.mean(eigenvalues**3))


def test_published_moments_stand_beside_ours_with_the_differences(written: Path) -> None:
    text = (written / "results.md").read_text()
    assert f"### {LAYER.format(1)}, 384 x 384" in text
    assert LAYER.format(0) not in text.split("## Moments of single layers")[1].split("## ")[0]
    (line,) = [line for line in text.splitlines() if line.startswith("| measured, all")]
    assert line.endswith("| 0.71 | 1.38 | 3.95 |")
    assert "BERT on SciTail" in text
    assert json.loads((written / "results.json").read_text())["model"] == "the demo BERT"


def test_shapes_are_those_of_the_weights_also_where_they_are_wide() -> None:
    recipe = importlib.import_module("spectra")
    net = torch.nn.Sequential(torch.nn.Linear(96, 64, bias=False))
    (layer,) = hf_rmt.analyze(net, target_modules="all-linear")
    fits = recipe.compared(layer.fit)
    assert {row["shape"] for row in recipe.judged("0", "64 x 96", fits)} == {"64 x 96"}
    made = recipe.figures({"0": fits}, {"0": "64 x 96"}, recipe.judged("0", "64 x 96", fits))
    assert made["laws"].axes[0].get_title() == "0\n64 x 96"


def test_shares_and_verdicts_count_the_layers_on_which_pdb_is_closer(tables: Any) -> None:
    distances = {
        "PDB": [0.1, 0.1, 0.1, 0.4],
        "PDB, published": [0.0] * 4,
        "PUB, BEMA": [0.2] * 4,
        "PUB, kernel": [0.2, 0.2, 0.05, 0.5],
    }
    lines = {
        (line["population"], line["quantity"]): line
        for line in tables.summary(rows_of(tables, distances))
    }
    line = lines["own noise", "distance"]
    assert (line["closer_than_PUB, BEMA"], line["closer_than_PUB, kernel"]) == (0.75, 0.75)
    assert line["closer_than_both"] == 0.5
    assert line["median_PDB"] == 0.1
    assert ("whole", "distance") not in lines
    assert lines["whole", "gamma_2"]["median_PDB"] == pytest.approx(0.1)
    assert lines["whole", "gamma_1..3, mean"]["median_PUB, BEMA"] == pytest.approx(0.2)
    assert tables.verdict(line) == "PDB closer"
    one = {"closer_than_PUB, BEMA": 0.9}
    assert tables.verdict({**one, "closer_than_PUB, kernel": 0.7}) == "does not separate"
    both = {"closer_than_PUB, BEMA": 0.25, "closer_than_PUB, kernel": 0.1}
    assert tables.verdict(both) == "PUB closer"


def test_layers_that_pdb_loses_are_named_with_their_spread(tables: Any) -> None:
    distances = {"PDB": [0.1, 0.3], "PDB, published": [0.0, 0.0]}
    distances |= {"PUB, BEMA": [0.2, 0.2], "PUB, kernel": [0.2, 0.2]}
    options = {"title": "a model", "kind": "vit", "shown": ["layer.0"]}
    text = tables.markdown(rows_of(tables, distances), left_out={"head": "zero"}, **options)
    lost = text.split("Layers on which PDB is not closer")[1]
    assert "| layer.1 | 0.300 | 0.000 | 0.200 | 0.200 | 2.00 | 1.00 |" in lost
    assert "| layer.0 |" not in lost
    assert "2 weights, 1 left out\n\n- head: zero" in text
    assert "no table of moments for this kind" in text
