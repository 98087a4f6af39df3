from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer

import hf_rmt
from hf_rmt import SpikedLinear
from hf_rmt.cli import main
from tests.huggingface.models import outputs, tiny_model

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "signal", "noise")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dense")
    tiny_model("bert").save_pretrained(folder)
    return str(folder)


ODD_FOLDERS = {
    "empty": {"notes.txt": ""},
    "gguf": {"model.gguf": "GGUF"},
    "adapter": {"adapter_config.json": "{}"},
    "model": {"config.json": "{}"},
    "broken": {"config.json": '{"model_type": "bert"'},
    "bitsandbytes": {
        "config.json": '{"model_type": "bert", "quantization_config": {"load_in_8bit": true}}'
    },
    "gptq": {
        "config.json": '{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}'
    },
}
"""Folders that hold no model which can be read, by name: their files."""


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


@pytest.mark.parametrize("source", ["{dense}", "{tmp}/nowhere"])
def test_a_failed_export_leaves_no_folder(
    dense: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert main(["export", source.format(dense=dense, tmp=tmp_path), str(out)]) == 1
    assert not out.parent.exists()
    assert "hf-rmt: " in capsys.readouterr().err


def test_a_compressed_model_is_refused_before_anything_is_written(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, again = str(tmp_path / "small"), tmp_path / "again"
    run(capsys, "compress", dense, small)
    assert main(["compress", small, str(again), "--noise", "ternary"]) == 1
    captured = capsys.readouterr()
    assert f"{small} is quantized already with 'rmt'" in captured.err
    assert not again.exists()


def test_a_model_that_stays_plain_is_written_as_one(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(run(capsys, "compress", dense, str(tmp_path), "--min-size", "49", "--json"))
    assert report["totals"]["compressed"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


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
        (["compress", "{dense}", "{dense}/config.json/deeper"], "is a file"),
        (["compress", "{dense}", "--dry-run", "--noise-removal", "0.5"], "noise='drop'"),
        (["analyze", "{dense}", "--target-modules", "wq"], "matches no linear layer"),
        (["analyze", "{dense}", "--method", "svd"], "exactly one"),
        (["export", "{dense}", "{dense}/out"], "dense already"),
        (["compress", "{dense}", "{dense}"], "is the folder that is read"),
        (["export", "{dense}", "{dense}/."], "is the folder that is read"),
        (["extract-lora", "{dense}", "{dense}/../tuned", "{dense}"], "is the folder that is read"),
        (["compress", "{dense}", "{model}"], "pass --overwrite"),
        (["compress", "{empty}", "{new}"], "without config.json"),
        (["compress", "{dense}/model.safetensors", "{new}"], "is a file; pass the folder"),
        (["compress", "{gguf}", "{new}"], "GGUF"),
        (["compress", "{gguf}/model.gguf", "{new}"], "GGUF"),
        (["compress", "{adapter}", "{new}"], "holds an adapter and no model"),
        (["compress", "{bitsandbytes}", "{new}"], "quantized with 'bitsandbytes'"),
        (["analyze", "{gptq}"], "quantized with 'gptq'"),
        (["analyze", "{broken}"], "config.json"),
    ],
)
def test_bad_input_is_one_line_on_standard_error(
    dense: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {name: str(tmp_path / name) for name in ("new", *ODD_FOLDERS)}
    for name, files in ODD_FOLDERS.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    assert main([argument.format(dense=dense, **places) for argument in arguments]) == 1
    assert not (tmp_path / "new").exists()
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_the_traceback_is_shown_when_asked_for(dense: str) -> None:
    with pytest.raises(ValueError, match="--dry-run"):
        main(["compress", dense, "--traceback"])


ENCODER = {
    "modules.json": '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
    "sentence_bert_config.json": '{"max_seq_length": 32}',
    "1_Pooling/config.json": "{}",
    "2_Dense/model.safetensors": "weights of a module",
    "onnx/model.onnx": "other format",
    "pytorch_model.bin": "other format",
    "checkpoint-5/optimizer.pt": "of a training",
    "README.md": "the source's own",
}


def test_what_the_save_did_not_write_is_carried_over(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, small = tmp_path / "source", tmp_path / "small"
    tiny_model("bert").save_pretrained(source)
    for name, text in ENCODER.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    assert main(["compress", str(source), str(small)]) == 0
    told = capsys.readouterr().err
    carried = {name: (small / name).exists() for name in ENCODER if name != "README.md"}
    left = {"onnx/model.onnx", "pytorch_model.bin", "checkpoint-5/optimizer.pt"}
    assert {name for name, there in carried.items() if not there} == left
    assert "left out" in told
    assert all(name in told for name in ("onnx/model.onnx", "pytorch_model.bin"))
    assert "the source's own" not in (small / "README.md").read_text()


def test_a_model_that_is_replaced_leaves_nothing_of_its_own(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, out = str(tmp_path / "small"), tmp_path / "out"
    run(capsys, "compress", dense, small)
    run(capsys, "compress", dense, str(out))
    (out / "notes.txt").write_text("mine")
    run(capsys, "export", small, str(out), "--overwrite")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "notes.txt",
    }


def test_ctrl_c_is_one_line_and_leaves_nothing(
    dense: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_rmt.huggingface.delivery.carry", interrupt)
    assert main(["compress", dense, str(tmp_path / "out"), "--quiet"]) == 130
    assert capsys.readouterr().err == "hf-rmt: interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [["pipeline"], [3], "BertModel", {}, ["nothing"]])
def test_an_odd_architecture_is_no_reason_to_fail(
    named: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": named}))
    status = main(["analyze", str(tmp_path), "--target-modules", "query"])
    error = capsys.readouterr().err
    assert status == 0 or "config.json" in error
    assert "Traceback" not in error
