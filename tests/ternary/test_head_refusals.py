"""Ternary heads: data and options that cannot work, and what is said about them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from hf_rmt import RMTConfig, compress
from hf_rmt.ternary.weight import UNVARIED
from tests.ternary.test_head import MATCHED, batches, logits, other, trained


@pytest.mark.parametrize("copies", [1, 3, 10])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_samples_that_are_all_alike_are_refused(family: str, copies: int) -> None:
    model: Any = trained() if family == "bert" else other(family)[0]
    batch = batches(1, 1)[0]
    before = logits(model, batch)
    with pytest.raises(ValueError, match=r"same in all calibration samples.*different samples"):
        compress(model, RMTConfig(method="ntk"), calibration=[batch] * copies)
    assert torch.equal(logits(model, batch), before)


def test_a_last_layer_of_zeros_says_why_it_stays_dense() -> None:
    model = trained()
    torch.nn.init.zeros_(model.classifier.weight)
    plan = compress(model, RMTConfig(method="ntk"), calibration=batches()).plan
    assert [layer.reason for layer in plan if not layer.compressed] == ["all weights are zero"]


def test_a_last_layer_whose_inputs_do_not_vary_is_not_refitted() -> None:
    model = trained()
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(1e-3)  # so that the step never changes its side
        model.bert.pooler.dense.bias.fill_(3.0)
    plan = compress(model, MATCHED, calibration=batches()).plan
    assert [layer.reason for layer in plan][1] == UNVARIED
    assert torch.isfinite(logits(model)).all()


def test_few_samples_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        compress(trained(), RMTConfig(method="ntk"), calibration=batches(1, 20))
    assert "classifier is fitted to 20 samples; pass a few hundred" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        compress(trained(), RMTConfig(method="ntk"), calibration=batches(4, 16))
    assert "samples" not in caplog.text


def test_a_sparsity_that_empties_rows_names_layer_and_limit() -> None:
    with pytest.raises(ValueError, match=r"none of the 48 weights in a row.*at most 0.979"):
        compress(trained(), RMTConfig(method="ntk", sparsity=0.995), calibration=batches())
    compress(trained(), RMTConfig(method="ntk", sparsity=0.979), calibration=batches())


@pytest.mark.parametrize("family", ["t5", "resnet"])
def test_without_data_a_model_that_wants_more_says_what_to_pass(family: str) -> None:
    if family == "resnet":
        sizes = {"hidden_sizes": [32, 64], "depths": [1, 1], "embedding_size": 32}
        model: Any = ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic"))
    else:
        model = other("t5")[0]
    with pytest.raises(ValueError, match=r"dummy inputs.*pass calibration=batches"):
        compress(model, MATCHED)
