from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_rmt.cli import main
from tests.cli.running import run
from tests.huggingface.models import tiny_model

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
    "number": {"config.json": '{"model_type": "bert", "quantization_config": 3}'},
    "list": {"config.json": '["bert"]'},
    "code": {"config.json": '{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config"}}'},
}
"""Folders that hold no model which can be read, by name: their files."""


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


def test_quiet_is_quiet_while_the_command_runs(
    dense: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ)
    assert main(["compress", dense, str(tmp_path / "a"), "--quiet", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)
    assert captured.err == ""
    assert os.environ == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "{dense}"], "--dry-run"),
        (["compress", "", "{new}"], "the name of the model is empty"),
        (["analyze", "{dense}", "--html", ""], "--html must name a file"),
        (["analyze", "{dense}", "--html", "{new}.txt"], "must end in .html or .htm"),
        (["compress", "{dense}", "{new}", "--html", "{new}.txt"], "must end in .html or .htm"),
        (["compress", "{dense}", "--dry-run", "--html", "{new}.txt"], "must end in .html or .htm"),
        (["analyze", "{dense}", "--save", "{dense}/config.json"], "--save must be a folder"),
        (["analyze", "{dense}", "--save", ""], "--save must name a file or a folder, got ''"),
        (["extract-lora", "{empty}", "{dense}", "{new}"], "without config.json"),
        (["compress", "{dense}", "{dense}/config.json"], "is a file"),
        (["compress", "{dense}", "{dense}/config.json/deeper"], "is a file"),
        (["compress", "{dense}", "--dry-run", "--noise-removal", "0.5"], "noise='drop'"),
        (["analyze", "{dense}", "--target-modules", "wq"], "matches no linear layer"),
        (["compress", "{dense}", "{new}", "--target-modules", "wq"], "Error: target_modules='wq'"),
        (["compress", "{dense}", "{new}", "--private"], "pass --push-to-hub REPO"),
        (["extract-lora", "{dense}", "{dense}", "{new}", "--private"], "pass --push-to-hub REPO"),
        (["analyze", "{dense}", "--target-modules", ""], "selects nothing"),
        (["compress", "{dense}", "{new}", "--modules-to-not-convert", ""], "selects nothing"),
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
        (["analyze", "{number}"], "quantization_config must be a mapping, got 3; remove it"),
        (["export", "{list}", "{new}"], "config.json"),
        (["compress", "{code}", "{new}"], "trust_remote_code=True) and pass the loaded model"),
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
    "smaller/config.json": "of another model",
    "smaller/model.safetensors": "of another model",
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
    left |= {"smaller/config.json", "smaller/model.safetensors"}
    assert {name for name, there in carried.items() if not there} == left
    assert "not copied from" in told
    assert all(name in told for name in ("onnx/model.onnx", "pytorch_model.bin", "smaller/"))
    assert "the source's own" not in (small / "README.md").read_text()


def test_nobody_is_asked_whether_code_of_a_tokenizer_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", asked.append)
    source, small = tmp_path / "source", tmp_path / "small"
    tiny_model("vit").save_pretrained(source)
    named = {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": ["odd.Odd", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    (source / "odd.py").write_text("raise AssertionError('this code must not run')")
    assert main(["compress", str(source), str(small)]) == 0
    assert not asked
    for file in ("tokenizer_config.json", "odd.py"):
        assert (small / file).read_text() == (source / file).read_text()


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


def test_ctrl_c_while_pushing_says_what_was_written(
    dense: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_rmt.huggingface.saving.save._push_to_hub", interrupt)
    out = str(tmp_path / "out")
    assert main(["compress", dense, out, "--push-to-hub", "you/small", "--quiet"]) == 130
    expected = f"hf-rmt: interrupted; written to {out}; pushing to you/small\n"
    assert capsys.readouterr().err == expected
    assert (tmp_path / "out" / "model.safetensors").is_file()


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


@pytest.mark.parametrize("command", ["analyze", "compress"])
def test_a_page_never_replaces_a_file_that_is_no_page(
    command: str, dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(dense, "config.json").read_bytes()
    output = [str(tmp_path / "out")] if command == "compress" else []
    assert main([command, dense, *output, "--html", str(Path(dense, "config.json"))]) == 1
    assert "must end in .html or .htm" in capsys.readouterr().err
    assert Path(dense, "config.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_page_and_a_model_have_two_names(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["compress", dense, out, "--html", out]) == 1
    assert "--html and OUTPUT are both" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("repo", ["bad name!", "", "a/b/c", "https://huggingface.co/me/it"])
@pytest.mark.parametrize("command", ["compress", "extract-lora"])
def test_a_repository_is_checked_before_the_work(
    command: str, repo: str, dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    sources = [dense] if command == "compress" else [dense, str(tmp_path / "nowhere")]
    assert main([command, *sources, out, "--push-to-hub", repo]) == 1
    told = f"--push-to-hub must be the name of a repository, owner/name or name, got {repo!r}"
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
