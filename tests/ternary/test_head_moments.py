"""What ternary heads measure: means that stay, and the scales that steps are matched at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_rmt import RMTConfig, compress
from hf_rmt.nn import StepActivation, TernaryLinear
from hf_rmt.ternary.regression import outputs_of
from hf_rmt.ternary.weight import matched_step
from tests.ternary.test_head import Block, batches, trained

CONFIG = RMTConfig(method="ntk", activation="matched")


class Perceptron(nn.Module):
    """Narrower than any layer that a spectrum is fitted to; units differ in their means."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.act, self.down = nn.Linear(24, 20), nn.GELU(), nn.Linear(20, 3)
        nn.init.normal_(self.up.bias, mean=0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


def gelu(x: Any) -> Any:
    return nn.functional.gelu(torch.tensor(x)).numpy()


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(500, 24, generator=torch.Generator().manual_seed(1)) + 0.3}


def test_a_layer_keeps_the_mean_of_its_outputs() -> None:
    model, name = trained(), "bert.pooler.dense"
    before = torch.cat([call for (call,) in outputs_of(model, name, batches())])
    compress(model, RMTConfig(method="ntk", activation="keep"), calibration=batches())
    after = torch.cat([call for (call,) in outputs_of(model, name, batches())])
    assert type(model.get_submodule(name)) is TernaryLinear
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-4, atol=1e-4)
    assert (after - before).norm() > 0.1 * before.norm()


@torch.no_grad()
def test_a_step_is_matched_to_all_that_the_activation_was_given_and_is_now() -> None:
    model, data = Perceptron(), inputs()
    before = model.up(data["x"])
    plan = compress(model, CONFIG, calibration=[data]).plan.layers[0]
    after = model.up(data["x"])
    assert isinstance(model.act, StepActivation)
    sizes = [float(each.std(unbiased=False)) for each in (before, after)]
    step = matched_step(gelu, mean=float(before.mean()), tau=sizes[0], step_tau=sizes[1])
    assert plan.step["thresholds"] == pytest.approx(step["thresholds"], rel=1e-4)
    assert plan.step["heights"] == pytest.approx(step["heights"], rel=1e-4)
    assert abs(sizes[0] - sizes[1]) > 1e-3 * sizes[0]


@torch.no_grad()
@pytest.mark.parametrize("affine", [True, False])
def test_tau_without_data_knows_the_gain_and_the_biases(affine: bool) -> None:
    torch.manual_seed(0)
    plain, calibrated = Block(), Block()
    if affine:
        plain.norm.weight.fill_(2.0)
    else:
        plain.norm = calibrated.norm = nn.LayerNorm(400, elementwise_affine=False)
    nn.init.normal_(plain.up.bias, mean=0.2)
    calibrated.load_state_dict(plain.state_dict())
    told = compress(plain, CONFIG).plan.layers[0].step
    measured = compress(calibrated, CONFIG, calibration=[{"x": torch.randn(4000, 400)}])
    step = measured.plan.layers[0].step
    assert told["thresholds"] == pytest.approx(step["thresholds"], rel=0.03)
    assert told["heights"] == pytest.approx(step["heights"], rel=0.03, abs=0.01)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_norm_that_treats_units_differently_does_not_tell_tau(parameter: str) -> None:
    model = Block()
    with torch.no_grad():
        getattr(model.norm, parameter)[0] += 0.5
    with pytest.raises(ValueError, match="pass calibration=batches"):
        compress(model, CONFIG)
