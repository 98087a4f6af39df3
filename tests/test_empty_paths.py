"""No writer takes an empty name for the folder that the process works in."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.cli import main
from hf_rmt.staging import staged

WRITERS = ("save", "to_html", "to_csv", "to_json", "save_pretrained")
"""Names of the methods of this package that write to a path."""


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=96, vocab_size=50))


def model() -> Any:
    compressed = tiny()
    hf_rmt.compress(compressed, RMTConfig(method="svd", rank=8))
    return compressed


def adapter() -> Any:
    base, tuned = tiny(), tiny()
    torch.nn.init.normal_(tuned.bert.pooler.dense.weight)
    return hf_rmt.extract_adapter(base, tuned, rank=1)


def spectra() -> Any:
    return hf_rmt.analyze(tiny())


def compression() -> Any:
    return model().compression_report


def searched() -> Any:
    return hf_rmt.search(tiny(), lambda _: 1.0, tolerance=0.1, fractions=[0.5])


def part() -> Any:
    return model().bert


OBJECTS = [model, part, adapter, spectra, compression, searched]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def untouched(folder: Path) -> bool:
    return not list(folder.iterdir()) and os.path.samefile(Path.cwd(), folder)


@pytest.mark.parametrize("make", OBJECTS)
def test_what_is_written_has_a_name(make: Callable[[], Any], here: Path) -> None:
    made = make()
    found = [getattr(made, name) for name in WRITERS if hasattr(made, name)]
    tried = [write for write in found if inspect.signature(write).parameters]
    assert tried
    for write in tried:
        with pytest.raises(ValueError, match="got ''"):
            write("")
    assert untouched(here)


def test_a_search_is_resumed_from_a_name(here: Path) -> None:
    with pytest.raises(ValueError, match=r"resume_from must name .* got ''"):
        hf_rmt.search(tiny(), lambda _: 1.0, tolerance=0.1, resume_from="")
    assert untouched(here)


COMMANDS = [
    ["compress", "MODEL", ""],
    ["compress", "MODEL", "", "--push-to-hub", "me/it"],
    ["compress", "MODEL", "out", "--html", ""],
    ["export", "MODEL", ""],
    ["extract-lora", "MODEL", "OTHER", ""],
    ["analyze", "MODEL", "--save", ""],
    ["analyze", "MODEL", "--html", ""],
    ["demo", ""],
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_given_a_name(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) != 0
    assert "''" in capsys.readouterr().err
    assert untouched(here)


def test_the_folder_one_works_in_is_written_to_and_stays_the_same(here: Path) -> None:
    before = here.stat().st_ino
    with staged(".") as aside:
        (aside / "config.json").write_text("{}")
    assert here.stat().st_ino == before
    assert os.listdir() == ["config.json"]


def test_the_dot_saves_a_model_there(here: Path) -> None:
    saved = model()
    saved.save_pretrained(".")
    again = BertForSequenceClassification.from_pretrained(here)
    assert torch.equal(again.classifier.weight, saved.classifier.weight)
    assert Path.cwd().samefile(here)
