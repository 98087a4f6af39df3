"""A method that is registered from outside the package works wherever those inside it do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Trainer

from hf_rmt import RMTCallback, RMTConfig, SpikedLinear, analyze, compress
from hf_rmt.cli import main
from hf_rmt.settings import methods, register_method, unregister_method
from tests.huggingface.models import outputs, tiny_model
from tests.huggingface.outside_method import OneRank
from tests.huggingface.training.training import arguments, classifier, sentences
from tests.processes import succeed

NAME = OneRank.name


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_method(OneRank())
    yield
    unregister_method(NAME)


def ranks(model: torch.nn.Module) -> set[int]:
    return {part.rank for part in model.modules() if isinstance(part, SpikedLinear)}


def test_its_option_is_checked_and_belongs_to_it_alone() -> None:
    assert RMTConfig(method=NAME, noise="drop", parts=8).to_dict()["parts"] == 8
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        RMTConfig(method=NAME, parts=0)
    with pytest.raises(ValueError, match=r"parts=8 means nothing to method='pdb'.*one-rank"):
        RMTConfig(parts=8)


def test_it_compresses_in_memory_and_while_loading_and_reloads(tmp_path: Path) -> None:
    config = RMTConfig(method=NAME, noise="drop", parts=8)
    model = tiny_model("bert")
    model.save_pretrained(tmp_path / "dense")
    report = compress(model, config)
    assert len(ranks(model)) == 1
    assert {layer.rank for layer in report.plan} == ranks(model)
    loaded = AutoModel.from_pretrained(tmp_path / "dense", quantization_config=config)
    assert ranks(loaded)
    model.save_pretrained(tmp_path / "small")
    again = AutoModel.from_pretrained(tmp_path / "small")
    assert again.config.quantization_config == model.config.quantization_config
    torch.testing.assert_close(outputs(again, "bert"), outputs(model, "bert"))


def test_a_process_that_does_not_know_it_loads_what_it_made(tmp_path: Path) -> None:
    model = tiny_model("bert")
    compress(model, RMTConfig(method=NAME, noise="drop", parts=8))
    model.save_pretrained(tmp_path)
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, hf_rmt\n"
        "from transformers import AutoModel\n"
        "from hf_rmt.settings import methods\n"
        f"assert {NAME!r} not in methods()\n"
        "model = AutoModel.from_pretrained(sys.argv[1])\n"
        "model.save_pretrained(sys.argv[1] + '/again')\n"
        "print(model.config.quantization_config.parts)\n"
    )
    assert succeed(script, tmp_path).stdout.split() == ["8"]
    record = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert (record["method"], record["parts"]) == (NAME, 8)


def test_it_is_analysed() -> None:
    report = analyze(tiny_model("bert"), method=NAME, parts=16)
    assert {layer.fit.n_spikes for layer in report} == {min(layer.shape) // 16 for layer in report}


def test_it_filters_while_training(tmp_path: Path) -> None:
    model = classifier()
    config = RMTConfig(method=NAME, noise="drop", parts=8)
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=2),
        train_dataset=sentences(16),
        callbacks=[RMTCallback(config, schedule=1)],
    )
    trainer.train()
    assert ranks(model)
    assert model.compression_report.plan.compressed


def test_the_command_line_has_its_name_and_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    options = ["--method", NAME, "--noise", "drop", "--parts", "8", "--json", "--quiet"]
    assert main(["compress", str(tmp_path / "dense"), str(tmp_path / "small"), *options]) == 0
    plan = json.loads(capsys.readouterr().out)["layers"]
    assert any(layer["rank"] for layer in plan.values())
    assert ranks(AutoModel.from_pretrained(tmp_path / "small"))


def test_a_name_or_an_option_that_is_taken_is_refused() -> None:
    class Other(OneRank):
        name = "pdb"

    with pytest.raises(ValueError, match="'pdb' is registered already"):
        register_method(Other())
    assert type(methods()["pdb"]).__name__ == "PopulationDoubleBulk"
