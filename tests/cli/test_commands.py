from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer

import hf_rmt
from hf_rmt import CompressionPlan, CompressionReport, SpikedLinear
from hf_rmt.cli import main
from tests.cli.running import run
from tests.huggingface.models import outputs, tiny_model

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "signal", "noise")


def test_analyze_prints_a_table_or_json_and_saves(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(capsys, "analyze", dense, "--save", str(tmp_path))
    assert "encoder.layer.0.attention.self.query" in table
    assert {"table.txt", "report.json", "layers.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert len(json.loads(run(capsys, "analyze", dense, "--json"))["layers"]) == 6


def test_json_has_the_latencies_that_the_table_has(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(self: CompressionReport) -> CompressionReport:
        layers = tuple(replace(layer, latency=1.5) for layer in self.plan)
        return replace(self, plan=CompressionPlan(layers), clock=None)

    monkeypatch.setattr(CompressionReport, "timed", timed)
    for target in ("--dry-run", str(tmp_path / "out")):
        report = json.loads(run(capsys, "compress", dense, target, "--json"))
        assert {layer["latency"] for layer in report["layers"].values()} == {1.5}


def test_flags_may_have_underscores(dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--target-modules", "--target_modules")
    tables = [run(capsys, "analyze", dense, flag, "query") for flag in flags]
    assert tables[0] == tables[1]


def test_reports_become_one_page(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["analyze", dense], ["compress", dense, "--dry-run"]):
        page = tmp_path / f"{command[0]}.html"
        run(capsys, *command, "--html", str(page))
        text = page.read_text(encoding="utf-8")
        assert f"<title>{Path(dense).name}</title>" in text
        assert "encoder.layer.0.attention.self.query" in text
    assert main(["analyze", dense, "--html", str(tmp_path)]) == 1
    assert "--html must name a file" in capsys.readouterr().err


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


def test_layers_are_left_out_by_size_and_by_name(
    dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--min-size", "48", "--modules-to-not-convert", "query", "key"]
    plan = json.loads(run(capsys, "compress", dense, "--dry-run", "--json", *options))["layers"]
    assert {name.rpartition(".")[2] for name in plan} == {"value", "dense"}
    assert any(layer["outcome"] == "replaced" for layer in plan.values())
    none = run(capsys, "compress", dense, "--dry-run", "--json", "--min-size", "49")
    assert not any(layer["outcome"] == "replaced" for layer in json.loads(none)["layers"].values())


def test_only_a_tokenizer_that_was_saved_is_copied(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worded = tmp_path / "worded"
    tiny_model("bert").save_pretrained(worded)
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)})
    tokenizer.save_pretrained(worded)
    for source, size in ((dense, 0), (str(worded), len(WORDS))):
        small, plain = tmp_path / f"small{size}", tmp_path / f"plain{size}"
        run(capsys, "compress", source, str(small))
        run(capsys, "export", str(small), str(plain))
        for folder in (small, plain):
            assert (folder / "tokenizer.json").exists() == (size > 0)
            if size:
                copied = AutoTokenizer.from_pretrained(folder)
                assert copied("noise signal") == tokenizer("noise signal")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"hf-rmt {hf_rmt.__version__}\n"


@pytest.mark.parametrize("command", ["analyze", "compress", "export", "extract-lora", "demo"])
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    options = text[text.index("options:") :].splitlines()
    unexplained = [
        line
        for line, after in zip(options, [*options[1:], ""], strict=True)
        if line.startswith("  -") and not re.search(r"\S  +\S", line) and after[:8].strip()
    ]
    assert unexplained == []
    assert ("--method" in text) == (command in ("analyze", "compress"))
    assert ("--sparsity" in text) == (command == "compress")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "command", [["analyze"], ["compress", "--dry-run"], ["compress", "--dry-run", "--json"]]
)
def test_what_the_terminal_cannot_show_is_no_failure(
    command: list[str], encoding: str, dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    screen = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    assert main([command[0], dense, *command[1:], "--quiet"]) == 0
    screen.flush()
    assert "encoder.layer.0.attention.self.query" in written.getvalue().decode(encoding)
    assert screen.errors == "strict"
