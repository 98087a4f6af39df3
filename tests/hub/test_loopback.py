"""The loopback hub itself, with a stock model: what is pushed is what is pulled."""

from __future__ import annotations

PUSH = """
import torch
from transformers import BertConfig, BertModel
torch.manual_seed(0)
shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
model = BertModel(BertConfig(vocab_size=64, **shape)).eval()
model.push_to_hub("user/stock")
torch.save(model(torch.arange(64)[None]).last_hidden_state, "pushed.pt")
"""

PULL = """
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("user/stock")
assert torch.equal(model(torch.arange(64)[None]).last_hidden_state, torch.load("pushed.pt"))
"""


def test_pull_gives_what_was_pushed(loopback_hub):
    loopback_hub.run(PUSH)
    assert {"config.json", "model.safetensors"} <= set(loopback_hub.repos["user/stock"])
    loopback_hub.run(PULL)


def test_unknown_repository_is_named(loopback_hub):
    run = loopback_hub.run(PULL.replace("stock", "absent"), check=False)
    assert run.returncode != 0
    assert "user/absent is not a local folder" in run.stderr
