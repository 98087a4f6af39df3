"""`activation="auto"`: both heads are fitted, and the one that predicts held-out rows is kept."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_rmt import RMTConfig, compress
from hf_rmt.compression.model import Journal
from hf_rmt.nn import StepActivation, StepBefore
from hf_rmt.ternary.choice import TOO_FEW, UNJUDGED
from hf_rmt.ternary.least_squares import Regression
from tests.ternary.test_head import Block, batches, logits, trained

AUTO = RMTConfig(method="ntk")


class Steep(nn.Module):
    """A head whose activation is so steep that it is nearly a step."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 40, bias=False), nn.Linear(40, 3)
        nn.init.normal_(self.up.weight, std=size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def head(size: float, seed: int) -> Steep:
    torch.manual_seed(seed)
    return Steep(size)


def errors(reason: str) -> dict[str, float]:
    """The two errors that a reason tells."""
    with_step = r"held-out rows (\S+) with it, (\S+) without"
    kept = r"(\S+) with it, (\S+) with a step"
    if found := re.search(with_step, reason):
        return {"matched": float(found[1]), "keep": float(found[2])}
    found = re.search(kept, reason)
    assert found, reason
    return {"keep": float(found[1]), "matched": float(found[2])}


@pytest.mark.parametrize("offset", [3000.0, 1e5])
def test_a_large_offset_of_the_outputs_changes_no_error(offset: float) -> None:
    """Float32 rounds outputs near 1e5 to 0.008, which is small beside their spread of 1 or so."""
    found = []
    for shift in (0.0, offset):
        model, x = head(1.0, 0), rows(512, 1)
        with torch.no_grad():
            model.down.weight *= 4
            model.down.bias += shift
        report = compress(model, AUTO, calibration=[{"x": part} for part in x.split(128)])
        found.append(errors(report.plan.layers[0].reason))
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert 0 < found[0]["keep"] < 1


def fitted_on_three_rows_in_four(model: nn.Module, activation: str, x: Tensor) -> float:
    """The error on every fourth row of a head made of all rows, its last layer of the others."""
    dense, change = copy.deepcopy(model), copy.deepcopy(model)
    compress(change, RMTConfig(method="ntk", activation=activation), calibration=[{"x": x}])
    held = torch.arange(len(x)) % 4 == 3
    with torch.no_grad():
        wanted = dense(x)
        hidden = torch.tanh(change.up(x))
    last = nn.Sequential(copy.deepcopy(dense.down))
    seen = hidden[~held]
    compress_last(last, seen, wanted[~held])
    with torch.no_grad():
        missed = last(hidden[held]) - wanted[held]
    spread = wanted[held] - wanted[held].mean(0)
    return float(missed.square().sum() / spread.square().sum())


def compress_last(last: nn.Sequential, seen: Tensor, wanted: Tensor) -> None:
    """Refit a layer as the package does, from the sums over what it sees."""
    from hf_rmt.compression.apply import apply_decision
    from hf_rmt.ternary.weight import refit_weight

    sums = Regression(
        torch.tensor(float(len(seen))),
        seen.sum(0),
        wanted.sum(0),
        seen.T @ seen,
        seen.T @ wanted,
        wanted.square().sum(0),
    )
    layer: Any = last[0]
    decision = refit_weight("0", layer.weight.detach(), layer.bias, AUTO, sums)
    apply_decision(last, decision, layer.weight.detach())


@pytest.mark.parametrize("size", [0.2, 30.0])
def test_the_errors_are_those_of_rows_that_the_fit_did_not_see(size: float) -> None:
    model, x = head(size, 0), rows(400, 1)
    expected = {name: fitted_on_three_rows_in_four(model, name, x) for name in ("keep", "matched")}
    plan = compress(model, AUTO, calibration=[{"x": x}]).plan.layers[0]
    assert errors(plan.reason) == pytest.approx(expected, rel=0.02)
    assert (plan.step is not None) == (expected["matched"] < expected["keep"])


def test_either_may_win_and_the_head_is_then_the_one_that_was_asked_for() -> None:
    won = set()
    for seed in range(6):
        for size in (0.2, 30.0):
            model, x = head(size, seed), rows(400, seed)
            alone = copy.deepcopy(model)
            plan = compress(model, AUTO, calibration=[{"x": x}]).plan.layers[0]
            found = errors(plan.reason)
            better = min(found, key=lambda name: found[name])
            compress(alone, RMTConfig(method="ntk", activation=better), calibration=[{"x": x}])
            assert isinstance(model.up.step, StepBefore) == (better == "matched")
            state, expected = model.state_dict(), alone.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[key], expected[key]) for key in state)
            won.add(better)
    assert won == {"keep", "matched"}


def test_a_kept_module_is_the_module_that_was_there() -> None:
    model = trained()
    module, hook = model.bert.pooler.activation, []
    model.bert.pooler.dense.register_forward_hook(lambda *_: hook.append(1))
    report = compress(model, AUTO, calibration=batches(12))
    kept = report.plan.layers[0].step is None
    assert (model.bert.pooler.activation is module) == kept
    assert isinstance(model.bert.pooler.activation, StepActivation) == (not kept)
    hook.clear()
    logits(model)
    assert hook == [1]


def test_a_dry_run_tells_the_choice_and_changes_nothing() -> None:
    model = trained()
    before, parts = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    with Journal() as journal:
        planned = compress(model, AUTO, calibration=batches(), dry_run=True)
    assert journal.decisions == []
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert dict(model.named_modules()) == parts
    done = compress(model, AUTO, calibration=batches())
    assert [plan.reason for plan in planned.plan] == [plan.reason for plan in done.plan]


def test_an_error_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_rmt.ternary import fitting

    calls = []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of order")
        return regression(*args)

    regression = fitting.regression
    monkeypatch.setattr(fitting, "regression", failing)
    model = trained()
    before, parts = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    with pytest.raises(RuntimeError, match="out of order"):
        compress(model, AUTO, calibration=batches())
    assert dict(model.named_modules()) == parts
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not hasattr(model, "compression_report")


def test_too_few_samples_keep_the_activation() -> None:
    model = trained()
    report = compress(model, AUTO, calibration=batches(1, 20))
    assert report.plan.layers[0].reason == f"Tanh {TOO_FEW}"
    assert isinstance(model.bert.pooler.activation, nn.Tanh)


def test_without_a_last_layer_nothing_is_judged() -> None:
    model = trained()
    config = RMTConfig(method="ntk", target_modules=["pooler.dense"])
    report = compress(model, config, calibration=batches())
    assert [plan.reason for plan in report.plan] == [f"Tanh {UNJUDGED}"]
    assert isinstance(model.bert.pooler.activation, nn.Tanh)


def test_the_default_runs_without_data_and_keeps_the_activation() -> None:
    model = Block()
    report = compress(model, AUTO)
    assert isinstance(model.act, nn.GELU)
    assert all(plan.compressed for plan in report.plan)
