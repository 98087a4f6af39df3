"""A ternary head over a hub: packed weights and step activation come back with and without us."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load

from tests.hub.test_push_pull import NO_PACKAGE

HEAD, CALLED = "user/ternary-head", "user/called-head"
PUSH = f"""
import torch
import hf_rmt
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
shape = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
model = BertForSequenceClassification(BertConfig(vocab_size=64, **shape)).eval()
batches = [{{"input_ids": torch.randint(64, (16, 9))}} for _ in range(4)]
hf_rmt.compress(model, hf_rmt.RMTConfig(method="ntk", activation="matched"), calibration=batches)
model.push_to_hub({HEAD!r})
torch.save(model(torch.arange(64)[None]).logits, "head.pt")

from transformers import DistilBertConfig, DistilBertForSequenceClassification

shape = dict(dim=64, n_layers=1, n_heads=2, hidden_dim=128)
model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=64, **shape)).eval()
hf_rmt.compress(
    model, hf_rmt.RMTConfig(method="ntk", activation="matched"), calibration=batches
)
model.push_to_hub({CALLED!r})
torch.save(model(torch.arange(64)[None]).logits, "called.pt")
"""
PULL = """
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({source!r}{option}).eval()
assert torch.equal(model(torch.arange(64)[None]).logits, torch.load("head.pt"))
print(type(model.classifier).__name__, type(model.bert.pooler.activation).__name__)
"""


PULL_CALLED = """
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({source!r}{option}).eval()
assert torch.equal(model(torch.arange(64)[None]).logits, torch.load("called.pt"))
print(type(model.classifier).__name__, type(model.pre_classifier.step).__name__)
"""


@pytest.fixture(scope="module")
def pushed(loopback_hub):
    loopback_hub.run(PUSH)
    return loopback_hub


@pytest.mark.parametrize(
    ("before", "option"),
    [("import hf_rmt\n", ""), (NO_PACKAGE, ", trust_remote_code=True")],
    ids=["with the package", "by remote code"],
)
def test_pull_is_exact(pushed, before, option):
    run = pushed.run(before + PULL.format(source=HEAD, option=option))
    assert run.stdout.split() == ["TernaryLinear", "StepActivation"]
    run = pushed.run(before + PULL_CALLED.format(source=CALLED, option=option))
    assert run.stdout.split() == ["TernaryLinear", "StepBefore"]


def test_five_weights_are_pushed_in_a_byte(pushed):
    state = load(pushed.repos[HEAD]["model.safetensors"])
    codes = state["bert.pooler.dense.weight"]
    assert (codes.dtype, codes.shape) == (torch.int8, (-(-64 * 64 // 5),))
