"""Which layers of a head become what, and what is said of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hf_rmt import RMTConfig, compress
from hf_rmt.kernels import NoMatchError
from hf_rmt.ternary.fitting import REFITTED
from hf_rmt.ternary.forward_trace import UNREACHED
from hf_rmt.ternary.head import NO_DATA
from hf_rmt.ternary.weight import made, ternarize_weight
from tests.ternary.test_head import MATCHED, Block, Shared, batches, logits, other, trained

KEEP = RMTConfig(method="ntk", activation="keep")


class Perceptron(nn.Module):
    """Its last layer is declared first; one layer is never called."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.spare, self.up = nn.Linear(40, 3), nn.Linear(24, 3), nn.Linear(24, 40)
        self.act = nn.GELU() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class NearlyLinear(nn.Tanh):
    """An activation, by its module, whose one-level step would need a cell of width 1e-8."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-8 * x.square()


NearlyLinear.__module__ = nn.Tanh.__module__


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(300, 24, generator=torch.Generator().manual_seed(1)) + 0.3}


def test_plans_come_in_the_order_of_the_names_and_say_what_became_of_each() -> None:
    report = compress(Perceptron(), MATCHED, calibration=[inputs()])
    assert [plan.name for plan in report.plan] == ["down", "spare", "up"]
    reasons = [plan.reason for plan in report.plan]
    assert reasons[:2] == [REFITTED, UNREACHED]
    assert reasons[2].startswith("step for GELU, tau=")


def test_a_layer_that_no_batch_reached_is_not_refitted_as_the_last() -> None:
    config = RMTConfig(method="ntk", target_modules=["spare", "up"])
    report = compress(Perceptron(), config, calibration=[inputs()])
    assert report.plan.layers[0].reason == UNREACHED
    random = RMTConfig(method="ntk", target_modules=["spare", "up"], weights="random")
    with pytest.raises(ValueError, match="weights='random' needs a last layer"):
        compress(Perceptron(), random, calibration=[inputs()])


def test_nothing_is_said_of_activations_that_were_to_be_kept() -> None:
    report = compress(Shared(), KEEP, calibration=[{"x": torch.randn(64, 40)}])
    assert [plan.reason for plan in report.plan] == ["", "", REFITTED]


def test_a_hidden_layer_is_near_in_its_outputs_about_their_mean() -> None:
    model, data = Perceptron(), inputs()
    weight = model.up.weight.detach().clone()
    compress(model, KEEP, calibration=[data])
    moment = torch.cov(data["x"].T, correction=0)
    expected = made(ternarize_weight("up", weight, KEEP, moment=moment))
    torch.testing.assert_close(model.up.dense(), expected.dense(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["matched", "keep"])
def test_a_layer_of_zeros_stays_dense_with_its_activation(activation: str) -> None:
    model = Perceptron()
    model.up.weight.data.zero_()
    config = RMTConfig(method="ntk", target_modules=["up"], activation=activation)
    (plan,) = compress(model, config, calibration=[inputs()]).plan
    assert (type(model.up), type(model.act)) == (nn.Linear, nn.GELU)
    assert plan.reason == "all weights are zero"


def test_a_layer_of_zeros_behind_a_norm_stays_dense_without_data() -> None:
    model = Block()
    model.up.weight.data.zero_()
    report = compress(model, MATCHED)
    assert isinstance(model.act, nn.GELU)
    assert [plan.compressed for plan in report.plan] == [False, True]


def test_without_data_activations_are_kept_and_it_is_said_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, _, names = other("roberta")
    report = compress(model, RMTConfig(method="ntk"))
    assert [(plan.name, plan.reason) for plan in report.plan] == [(name, NO_DATA) for name in names]
    assert "pass calibration=batches" in caplog.text


def test_a_called_function_without_a_norm_before_it_has_no_tau_without_data() -> None:
    with pytest.raises(ValueError, match=r"inputs of 'tanh' after 'classifier.dense' is not"):
        compress(other("roberta")[0], MATCHED)


def test_a_dry_run_without_data_changes_nothing() -> None:
    model = Block()
    planned = compress(model, MATCHED, dry_run=True)
    assert (type(model.up), type(model.act), type(model.down)) == (nn.Linear, nn.GELU, nn.Linear)
    done = compress(model, MATCHED)
    assert [plan.bits for plan in planned.plan] == [plan.bits for plan in done.plan]


@pytest.mark.parametrize("activation", ["matched", "keep"])
def test_random_weights_need_data_whatever_becomes_of_activations(activation: str) -> None:
    config = RMTConfig(method="ntk", weights="random", activation=activation)
    with pytest.raises(ValueError, match="weights='random' discards the training of a head"):
        compress(trained(), config)


def test_an_activation_without_a_step_is_named() -> None:
    model = Perceptron(NearlyLinear())
    message = r"no one-level step for NearlyLinear after 'up' was found at tau=0\.\d"
    with pytest.raises(NoMatchError, match=message):
        compress(model, MATCHED, calibration=[inputs()])


class Shuffled:
    """Batches in another order each time."""

    def __init__(self) -> None:
        self.turn, self.data = 0, batches(6)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.turn += 1
        return iter(self.data[self.turn :] + self.data[: self.turn])


def test_a_loader_that_shuffles_pairs_inputs_with_their_own_outputs() -> None:
    model, expected = trained(), trained()
    compress(model, KEEP, calibration=Shuffled())
    compress(expected, KEEP, calibration=batches(6))
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-3, atol=1e-3)
