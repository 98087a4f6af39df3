"""Arguments of the wrong type: refused by name, before any work."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_rmt import RMTConfig, compress, extract_adapter, lora_targets, search
from tests.huggingface.models import tiny_model


def never(model: nn.Module) -> float:
    raise AssertionError("nothing may be evaluated")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "x"}, "hf_rmt needs a loaded model, got 'x'"),
        ({"evaluate": None}, "evaluate must be a function of the model, got None"),
        ({"tolerance": None}, "tolerance must be a number, got None"),
        ({"max_evaluations": None}, "max_evaluations must be an integer of at least 1, got None"),
        ({"fractions": 0.5}, "fractions must be several numbers in (0, 1], got 0.5"),
        ({"fractions": [0.5, "a"]}, "a fraction must be a number, got 'a'"),
    ],
)
def test_search_names_what_is_of_the_wrong_type(options: dict[str, Any], words: str) -> None:
    given = {"model": nn.Linear(4, 4), "evaluate": never, "tolerance": 0.1} | options
    with pytest.raises(TypeError, match=re.escape(words)):
        search(given.pop("model"), given.pop("evaluate"), **given)


def tuned() -> Any:
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight += 0.1
    return model


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "a"}, "size must be a number in (0, 1], got 'a'"),
        ({"threshold": "a"}, "threshold must be a number in (0, 1], got 'a'"),
        ({"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ({"calibration": 5}, "calibration must be several batches, got one int"),
        ({"calibration": {"input_ids": None}}, "got one dict; pass [batch]"),
    ],
)
def test_an_adapter_names_what_is_of_the_wrong_type(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        extract_adapter(tiny_model("bert"), tuned(), **options)


def test_an_adapter_takes_numbers_of_numpy(tmp_path: Any) -> None:
    adapter = extract_adapter(tiny_model("bert"), tuned(), rank=np.int64(2))
    adapter.save_pretrained(tmp_path)
    assert {type(update.left.shape[1]) for update in adapter.updates} == {int}


def test_a_batch_that_is_no_mapping_is_named_by_its_place() -> None:
    good = {"input_ids": torch.tensor([[3, 4, 5]])}
    with pytest.raises(TypeError, match=r"must be a mapping .* got int as number 1"):
        compress(tiny_model("bert"), RMTConfig(), calibration=[good, 3], dry_run=True)


def test_adapters_need_a_model() -> None:
    with pytest.raises(TypeError, match="hf_rmt needs a loaded model, got None"):
        lora_targets(None)  # type: ignore[arg-type]
