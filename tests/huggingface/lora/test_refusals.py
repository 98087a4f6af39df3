"""What `extract_adapter` refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_rmt import extract_adapter
from tests.huggingface.lora.adapters import VOCABULARY, tiny


def one_layer_less() -> Any:
    config = tiny("bert").config
    config.num_hidden_layers = 1
    return BertForSequenceClassification(config)


def with_nan(model: Any) -> Any:
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    return model


def more_tokens() -> Any:
    model = tiny("bert")
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    return model


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        (lambda: tiny("bert"), "no matrix that could take factors differs"),
        (one_layer_less, "exists in base only"),
        (lambda: tiny("t5"), "differ in architecture"),
        (more_tokens, r"has shape \(43, 24\) in tuned and is \(40, 24\) in base"),
        (lambda: with_nan(tiny("bert")), "nan or infinite"),
    ],
)
def test_bad_pairs_end_in_clear_errors(tuned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_adapter(tiny("bert"), tuned())


def test_a_path_to_another_architecture_is_named(pair: tuple[str, str], tmp_path: Path) -> None:
    tiny("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'vit' and tuned is a 'bert'"):
        extract_adapter(tmp_path, pair[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0.1, "rank": 2}, "exclude each other"),
        ({"size": 0}, r"size must lie in \(0, 1\], got 0"),
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"size": 1e-6}, "raise size"),
        ({"calibration": []}, "no batch"),
        ({"target_modules": ["nothing"]}, "nothing"),
    ],
)
def test_bad_options_end_in_clear_errors(
    options: dict[str, Any], message: str, pair: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=message):
        extract_adapter(*pair, **options)
