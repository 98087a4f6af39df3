"""The command line over a hub: what it pushes has the tokenizer of its source, if that has one."""

from __future__ import annotations

import pytest

TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
RUN = """
import torch
from transformers import BertConfig, BertModel, BertTokenizer
from hf_rmt.cli import main

torch.manual_seed(0)
shape = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
model = BertModel(BertConfig(vocab_size=64, **shape))
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "signal"]
tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
model.push_to_hub("user/bare")
with torch.no_grad():
    for name, weight in model.named_parameters():
        weight += 0.1 * torch.randn_like(weight)
model.push_to_hub("user/worded")
tokenizer.push_to_hub("user/worded")
assert main(["compress", "user/worded", "small", "--push-to-hub", "user/small"]) == 0
assert main(["compress", "user/bare", "smaller", "--push-to-hub", "user/smaller"]) == 0
assert main(["compress", "user/small", "none", "--push-to-hub", "user/none"]) == 1
adapter = ["adapter", "--size", "0.5", "--push-to-hub", "user/adapter"]
assert main(["extract-lora", "user/bare", "user/worded", *adapter]) == 0
"""


@pytest.fixture(scope="module")
def hub(loopback_hub):
    loopback_hub.run(RUN)
    return loopback_hub


@pytest.mark.parametrize(
    ("name", "weights"),
    [("small", "model.safetensors"), ("adapter", "adapter_model.safetensors")],
)
def test_the_tokenizer_goes_where_the_weights_go(hub, name, weights):
    written = {path.name for path in (hub.folder / name).iterdir()}
    assert {weights, *TOKENIZER} <= written
    pushed = hub.repos[f"user/{name}"]
    assert written == pushed.keys()
    assert pushed["tokenizer.json"] == hub.repos["user/worded"]["tokenizer.json"]
    assert "hf_rmt" in pushed["README.md"].decode()


def test_no_tokenizer_is_made_up_for_a_repository_without_one(hub):
    written = {path.name for path in (hub.folder / "smaller").iterdir()}
    assert "model.safetensors" in written
    assert not TOKENIZER & (written | hub.repos["user/smaller"].keys())


def test_what_is_compressed_already_is_refused_before_anything_is_pushed(hub):
    assert "user/none" not in hub.repos
    assert not (hub.folder / "none").exists()
