"""What `search` finds, within how many evaluations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_rmt import RMTConfig, SearchResult, compress, search
from hf_rmt.compression.spectrum import decompose as decompose_all
from hf_rmt.report.search import within
from tests.huggingface.search.search_blocks import (
    CONFIG,
    GRID,
    LAYERS,
    SIZE,
    Blocks,
    Metric,
    losses,
)


def test_each_layer_loses_the_most_that_holds_given_those_before() -> None:
    model = Blocks()
    lost = losses()
    tolerance = sum(lost[0.5]) + 1.0001 * (lost[0.75][1] - lost[0.5][1])
    metric = Metric(model)
    result = search(model, metric, tolerance=tolerance, config=CONFIG, fractions=GRID)
    assert result.uniform_removal == 0.5
    assert within(result.metric, 1.0, tolerance)
    for name in result.layers:
        for fraction in (f for f in GRID if f > result.removal[name]):
            other = Blocks()
            removal = {**result.removal, name: fraction}
            plan = compress(other, CONFIG.replace(noise_removal=removal)).plan
            raised = next(layer for layer in plan if layer.name == name)
            nothing = not raised.compressed and not raised.dropped_energy
            assert nothing or metric(other) < 1.0 - tolerance


@pytest.mark.parametrize("spikes", [0, 3])
def test_a_layer_that_is_left_alone_is_not_counted_as_filtered(spikes: int) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(64, 64, bias=False), "b": nn.Linear(64, 64, bias=False)})
    for layer in model.values():
        nn.init.normal_(layer.weight)
    for k in range(spikes):
        model["a"].weight.data[k, k] += 40.0
    config = RMTConfig(noise="drop", target_modules=["a", "b"])
    result = search(model, lambda _: 1.0, tolerance=1.0, config=config, fractions=(0.5, 1.0))
    assert [fraction for fraction, _ in result.curve] == ([0.5, 0.5] if spikes else [0.0, 0.5])
    assert result.uniform_removal == 0.5


def test_layers_are_raised_by_bisection_those_with_the_least_noise_first() -> None:
    model, grid = Blocks(), (0.3, 0.4, 0.5, 0.75, 0.85, 0.95, 1.0)
    costly = "blocks.1.0"
    metric = Metric(model, (0.0, 1.0, 0.0, 0.0))
    tolerance = 1.0001 * losses()[0.5][1]
    result = search(model, metric, tolerance=tolerance, config=CONFIG, fractions=grid)
    state, expected = dict.fromkeys(result.layers, 0.5), []
    for name in ("blocks.2.0", costly, "blocks.0.0", "blocks.3.0"):
        for fraction in (0.95, 0.85, 0.75) if name == costly else (0.95, 1.0):
            expected.append(state | {name: fraction})
        state[name] = 0.5 if name == costly else 1.0
    tried = [entry.removal for entry in result.evaluations]
    assert tried[1 + len(grid) :] == [*expected, state]
    assert result.removal == state


def test_the_largest_fraction_that_holds_everywhere_is_the_start() -> None:
    model = Blocks()
    options: dict[str, Any] = {"config": CONFIG, "fractions": GRID, "max_evaluations": 5}
    tolerance = 1.0001 * sum(losses()[0.75])
    result = search(model, Metric(model), tolerance=tolerance, **options)
    assert result.removal == dict.fromkeys(result.layers, 0.75)


def test_fractions_may_come_in_any_order_and_twice() -> None:
    model, tolerance = Blocks(), 1.2 * sum(losses()[0.5])
    options: dict[str, Any] = {"tolerance": tolerance, "config": CONFIG}
    expected = search(model, Metric(model), fractions=GRID, **options)
    assert search(model, Metric(model), fractions=(1.0, 0.5, 0.75, 0.5), **options) == expected


def test_a_config_that_served_before_is_told_by_what_the_user_chose() -> None:
    model = Blocks()
    options: dict[str, Any] = {"tolerance": 0.1, "fractions": GRID}
    served = CONFIG.replace(layers={"blocks.0.0": {"rank": 1}}, base_model="someone/model")
    results = [
        search(model, Metric(model), config=config, **options) for config in (CONFIG, served)
    ]
    assert results[0] == results[1]


def test_the_curve_removes_the_same_everywhere() -> None:
    model = Blocks()
    result = search(model, Metric(model), tolerance=0.1, config=CONFIG, fractions=GRID)
    expected = [1.0 - sum(lost) for lost in losses().values()]
    assert [fraction for fraction, _ in result.curve] == list(GRID)
    assert [metric for _, metric in result.curve] == pytest.approx(expected)
    assert result.baseline == 1.0


def test_a_layer_that_costs_nothing_loses_all_of_its_noise() -> None:
    model = Blocks()
    prices = (1.0, 0.0, 1.0, 1.0)
    result = search(model, Metric(model, prices), tolerance=1e-6, config=CONFIG, fractions=GRID)
    assert result.removal == {"blocks.1.0": 1.0}
    assert result.metric == 1.0
    assert result.uniform_removal == 0.0


def test_a_layer_without_spikes_keeps_some_of_its_noise() -> None:
    """Where all of it was to go the layer would stay as it is."""
    model = Blocks()
    result = search(model, lambda model: 0.5, tolerance=0.0, fractions=GRID)
    assert result.removal == {f"blocks.{k}.0": 1.0 for k in range(3)} | {"blocks.3.0": 0.75}


@pytest.mark.parametrize("most", [5, 6, 9])
def test_evaluations_are_bounded_and_the_rest_keeps_what_held_everywhere(most: int) -> None:
    model = Blocks()
    metric = Metric(model)
    tolerance = sum(losses()[0.5]) * 1.2
    result = search(
        model, metric, tolerance=tolerance, config=CONFIG, fractions=GRID, max_evaluations=most
    )
    assert metric.calls == len(result.evaluations) == most
    assert within(result.metric, result.baseline, tolerance)
    assert len(result.removal) == LAYERS
    if most == 5:
        assert set(result.removal.values()) == {0.5}
    assert result.evaluations[-1].removal == result.removal


@pytest.mark.parametrize("room", [True, False])
def test_what_does_not_hold_a_second_time_is_taken_back_by_halves(room: bool) -> None:
    model = Blocks()
    metric, moody = Metric(model), []

    def flattered(model: nn.Module) -> float:
        """Nothing is lost, it says of each new state beyond the curve."""
        moody.append(metric(model))
        new = moody.count(moody[-1]) == 1 and len(moody) > 1 + len(GRID)
        return 1.0 if new else moody[-1]

    lost, first = losses(), 2  # the layer with the strongest spike
    gain = lost[1.0][first] - lost[0.5][first]
    tolerance = 1.0001 * (sum(lost[0.5]) + (gain if room else 0.0))
    result = search(model, flattered, tolerance=tolerance, config=CONFIG, fractions=GRID)
    start = dict.fromkeys(result.layers, 0.5)
    one = start | {f"blocks.{first}.0": 1.0}
    last = dict.fromkeys(result.layers, 1.0) | {"blocks.3.0": 0.75}
    again = [last, one] if room else [last, one, start]
    assert [entry.removal for entry in result.evaluations[-len(again) :]] == again
    assert result.removal == again[-1]
    assert result.metric == pytest.approx(1.0 - sum(lost[0.5]) - (gain if room else 0.0))


def test_nothing_removable_is_said() -> None:
    model = Blocks()
    calls: list[None] = []

    def metric(model: nn.Module) -> float:
        calls.append(None)
        return float("nan") if len(calls) > 1 else 0.0

    result = search(model, metric, tolerance=0.1, config=CONFIG, fractions=GRID)
    assert (result.removal, result.metric) == ({}, 0.0)
    with pytest.raises(ValueError, match=r"no noise can be removed within tolerance=0\.1"):
        _ = result.config


def test_layers_below_the_smallest_size_are_not_searched_in() -> None:
    model = Blocks()
    small = nn.Sequential(nn.Linear(16, 16))
    model.blocks.append(small)
    result = search(model, lambda model: 0.0, tolerance=0.1, config=CONFIG, fractions=GRID)
    assert "blocks.4.0" not in result.removal
    assert "blocks.4.0" in result.layers


def test_a_layer_of_just_the_smallest_size_is_searched_in() -> None:
    config = CONFIG.replace(min_size=SIZE)
    result = search(Blocks(), lambda model: 0.0, tolerance=0.1, config=config, fractions=GRID)
    assert result.removal == dict.fromkeys(result.layers, 1.0)


def test_the_config_says_which_layers_are_searched_in() -> None:
    config = CONFIG.replace(modules_to_not_convert=["1.0"])
    result = search(Blocks(), lambda model: 0.0, tolerance=0.1, config=config, fractions=GRID)
    assert list(result.layers) == ["blocks.0.0", "blocks.2.0", "blocks.3.0"]


def test_a_fraction_that_takes_no_direction_is_not_tried() -> None:
    """Of 63 noise directions 0.005 are none."""
    model = Blocks()
    metric = Metric(model)
    result = search(model, metric, tolerance=1e-6, config=CONFIG, fractions=(0.005, 0.5))
    assert result.curve[0] == (0.0, 1.0)
    assert result.removal == {}
    assert all(0.005 not in entry.removal.values() for entry in result.evaluations)


def test_a_layer_that_has_nothing_to_lose_is_not_named() -> None:
    """Its noise directions have no energy, and factors would be larger than the weight."""
    model = Blocks()
    weight = model.blocks[3][0].weight.data
    weight.copy_(torch.outer(weight[:, 0], weight[0]))
    options: dict[str, Any] = {"tolerance": 0.1, "config": CONFIG, "fractions": (0.25,)}
    result = search(model, lambda model: 0.0, **options)
    assert result.removal == {f"blocks.{k}.0": 0.25 for k in range(3)}


def test_a_layer_without_eigenvalues_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Blocks()
    odd = model.blocks[1][0].weight

    def decompose(weight: torch.Tensor, settings: Any) -> Any:
        if torch.equal(weight, odd):
            raise torch.linalg.LinAlgError("no convergence")
        return decompose_all(weight, settings)

    monkeypatch.setattr("hf_rmt.huggingface.search.trials.decompose", decompose)
    result = search(model, lambda model: 0.0, tolerance=0.1, config=CONFIG, fractions=GRID)
    assert result.removal == {f"blocks.{k}.0": 1.0 for k in (0, 2, 3)}


def test_a_result_survives_json() -> None:
    model = Blocks()
    tolerance = sum(losses()[0.5])
    result = search(model, Metric(model), tolerance=tolerance, config=CONFIG, fractions=GRID)
    back = SearchResult.from_json(result.to_json())
    assert back == result
    assert back.config == result.config
    assert (back.config.method, back.config.noise_removal) == ("svd", result.removal)
