"""The size of a file that a report gives is that of the file."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertForSequenceClassification

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.nn import NOISE_KINDS
from hf_rmt.report.tables import size_text

SMALL = BertConfig(
    vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)


def bytes_on_disk(folder) -> int:
    """Bytes of the tensors of a saved model, without the header of the file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_the_reported_file_is_the_saved_one(noise, tmp_path):
    model = BertForSequenceClassification(SMALL)
    model.save_pretrained(tmp_path / "dense")
    config = RMTConfig(method="svd", rank=5, noise=noise)
    planned = hf_rmt.compress(model, config, dry_run=True).sizes.file
    done = hf_rmt.compress(model, config).sizes.file
    model.save_pretrained(tmp_path / "compressed")
    assert done == planned
    assert done == tuple(bytes_on_disk(tmp_path / name) for name in ("dense", "compressed"))


def test_a_dry_run_of_ternary_layers_has_the_sizes_of_the_file(tmp_path):
    model = BertForSequenceClassification(SMALL)
    model.save_pretrained(tmp_path / "dense")
    config = RMTConfig(method="ntk")
    batches = [{"input_ids": torch.arange(50).repeat(8, 1).roll(k, 1)[:, :16]} for k in range(4)]
    planned = hf_rmt.compress(model, config, calibration=batches, dry_run=True).sizes.file
    done = hf_rmt.compress(model, config, calibration=batches).sizes.file
    model.save_pretrained(tmp_path / "compressed")
    assert done == planned
    assert done == tuple(bytes_on_disk(tmp_path / name) for name in ("dense", "compressed"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_the_card_has_the_sizes_of_the_dtype_that_is_saved(noise, dtype, tmp_path):
    model = BertForSequenceClassification(SMALL)
    hf_rmt.compress(model, RMTConfig(method="svd", rank=5, noise=noise))
    model.save_pretrained(tmp_path / "first")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "first").to(dtype)
    loaded.save_pretrained(tmp_path / "compressed")
    dense = BertForSequenceClassification(SMALL).to(dtype)
    dense.save_pretrained(tmp_path / "dense")
    before, after = (bytes_on_disk(tmp_path / name) for name in ("dense", "compressed"))
    text = (tmp_path / "compressed" / "README.md").read_text(encoding="utf-8")
    shown = f"| all weights in the file | {size_text(before)} | {size_text(after)} |"
    assert shown in text
    assert f"| bits per weight, compressed layers | {8 * dtype.itemsize} |" in text
