from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_rmt import SpikedLinear
from hf_rmt.cli import main
from tests.integrations.models import outputs, tiny_model


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dense")
    tiny_model("bert").save_pretrained(folder)
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_analyze_prints_a_table_or_json_and_saves(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(capsys, "analyze", dense, "--save", str(tmp_path))
    assert "encoder.layer.0.attention.self.query" in table
    assert {"table.txt", "report.json", "layers.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert len(json.loads(run(capsys, "analyze", dense, "--json"))["layers"]) == 6


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["query"], 1), (["query", "key"], 2), ([r".*\.(query|dense)"], 5), (["all-linear"], 7)],
)
def test_targets_are_names_or_one_expression(
    dense: str, targets: list[str], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "analyze", dense, "--json", "--target-modules", *targets)
    assert len(json.loads(out)["layers"]) == count


def test_compress_and_export_write_models_that_load(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, plain = str(tmp_path / "small"), str(tmp_path / "plain")
    report = json.loads(run(capsys, "compress", dense, small, "--noise", "int4", "--json"))
    assert {layer["noise"] for layer in report["layers"].values()} == {"int4"}
    run(capsys, "export", small, plain)
    compressed, exported = AutoModel.from_pretrained(small), AutoModel.from_pretrained(plain)
    assert any(isinstance(module, SpikedLinear) for module in compressed.modules())
    assert not any(isinstance(module, SpikedLinear) for module in exported.modules())
    torch.testing.assert_close(
        outputs(exported, "bert"), outputs(compressed, "bert"), rtol=1e-4, atol=1e-5
    )


def test_options_reach_the_config(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--noise", "int4", "--stored-spikes", "all", "--recover-spikes", "--max-rank", "1"]
    run(capsys, "compress", dense, str(tmp_path), *options, "--target-modules", "query")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["noise"] == "int4"
    assert config["stored_spikes"] == "all"
    assert config["recover_spikes"] is True
    assert config["max_rank"] == 1
    assert list(config["layers"]) == ["encoder.layer.0.attention.self.query"]


@pytest.mark.parametrize(
    "options", [["svd", "--rank", "3"], ["svd", "--energy", "0.5"], ["slr", "--fraction", "0.25"]]
)
def test_a_method_and_what_it_keeps_are_options_of_both_commands(
    dense: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    method = ["--method", *options, "--json"]
    analysed = json.loads(run(capsys, "analyze", dense, *method))["layers"]
    planned = json.loads(run(capsys, "compress", dense, "--dry-run", "--noise", "drop", *method))
    assert {layer["phase"] for layer in analysed} == {"no law"}
    found = {layer["name"]: layer["spikes"] for layer in analysed}
    ranks = {name: layer["n_spikes"] for name, layer in planned["layers"].items()}
    assert found == ranks
    if "--rank" in options:
        assert set(ranks.values()) == {3}
    if "--fraction" in options:
        assert set(ranks.values()) == {12}


def test_a_dry_run_writes_nothing(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = run(capsys, "compress", dense, str(tmp_path / "no"), "--dry-run", "--noise", "drop")
    assert "6 of 6 layers" in plan
    assert not (tmp_path / "no").exists()


def test_quiet_is_quiet(dense: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", dense, str(tmp_path), "--quiet", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)
    assert "Compressing" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "{dense}"], "--dry-run"),
        (["compress", "{dense}", "{dense}/config.json"], "is a file"),
        (["compress", "{dense}", "--dry-run", "--noise-removal", "0.5"], "noise='drop'"),
        (["analyze", "{dense}", "--target-modules", "wq"], "matches no linear layer"),
        (["analyze", "{dense}", "--method", "svd"], "exactly one"),
        (["export", "{dense}", "{dense}/out"], "dense already"),
    ],
)
def test_bad_input_is_one_line_on_standard_error(
    dense: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(dense=dense) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_the_traceback_is_shown_when_asked_for(dense: str) -> None:
    with pytest.raises(ValueError, match="--dry-run"):
        main(["compress", dense, "--traceback"])
