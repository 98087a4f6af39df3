"""What a training keeps, chosen by what its batches excite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_rmt.compression.calibration.excited import cut
from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.huggingface.training.batch_moments import measurable
from hf_rmt.huggingface.training.choice import (
    FROZEN,
    NO_GRADIENT,
    NO_SIGNAL,
    NOT_REACHED,
    TOO_SMALL,
    WHOLE,
    choose,
)
from hf_rmt.settings import CompressionSettings

DROP = CompressionSettings(noise="drop")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "a": nn.Linear(60, 40),
            "b": nn.Linear(60, 40),
            "c": nn.Linear(60, 8),
            "d": nn.Linear(60, 40),
        }
    )


def excited(scale: float = 1.0, rows: int = 40) -> LayerMoments:
    inputs = torch.diag(torch.logspace(0, -3, 60))
    return LayerMoments(inputs, scale * torch.eye(rows))


def test_a_steeper_layer_gets_more_of_the_size() -> None:
    made = model()
    found = {"a": excited(), "b": excited(100.0)}
    choice = choose(made, ["a", "b"], found, DROP, 0.5)
    ranks = {name: entry["rank"] for name, entry in choice.layers.items()}
    assert 1 <= ranks["a"] < ranks["b"]
    assert choice.share == pytest.approx(sum(ranks.values()) * 100 / 4800)
    assert choice.share <= 0.5
    assert choice.probes["a left"].shape == (40, ranks["a"])
    assert choice.probes["a right"].shape == (60, ranks["a"])


def test_the_energies_are_those_of_the_first_cut() -> None:
    made = model()
    choice = choose(made, ["a"], {"a": excited()}, DROP, 0.5)
    weight = made["a"].weight.detach()
    rest = weight - cut(weight, choice.probes["a left"], choice.probes["a right"], 0.0)
    assert choice.layers["a"]["energy"] == pytest.approx(float(weight.square().sum()), rel=1e-5)
    assert choice.layers["a"]["rest"] == pytest.approx(float(rest.square().sum()), rel=1e-5)


def test_layers_that_stay_dense_say_why() -> None:
    made = model()
    choice = choose(made, ["a", "c", "d"], {"a": excited()}, DROP, 1.0)
    reasons = {name: entry["reason"] for name, entry in choice.layers.items()}
    assert reasons == {"a": WHOLE, "c": TOO_SMALL, "d": NOT_REACHED}
    assert choice.share == 1.0
    noise = choose(made, ["a"], {"a": excited()}, DROP, None)
    assert noise.layers["a"]["reason"] == NO_SIGNAL  # an untrained weight has no spikes
    assert not noise.probes


def test_a_layer_without_a_gradient_stays_dense_and_changes_nothing_for_the_others() -> None:
    made = model()
    alone = choose(made, ["b"], {"b": excited(100.0)}, DROP, 0.5)
    found = {"a": LayerMoments(excited().inputs), "b": excited(100.0)}
    choice = choose(made, ["a", "b"], found, DROP, 0.5)
    assert choice.layers["a"] == {"rank": None, "cause": "no gradient", "reason": NO_GRADIENT}
    assert choice.layers["b"]["rank"] == alone.layers["b"]["rank"]


def test_a_frozen_layer_stays_dense() -> None:
    made = model()
    made["b"].weight.requires_grad_(False)
    choice = choose(made, ["a", "b"], {"a": excited()}, DROP, 0.5)
    assert choice.layers["b"] == {"rank": None, "cause": "frozen", "reason": FROZEN}
    assert measurable(made, ["a", "b", "c"], 32) == ["a"]
