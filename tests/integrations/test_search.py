from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from hf_rmt import RMTConfig, SearchResult, SpikedLinear, compress, search
from hf_rmt.report.search import within
from tests.integrations.models import outputs, tiny_model

SIZE, LAYERS = 64, 4
GRID = (0.5, 0.75, 1.0)
CONFIG = RMTConfig(noise="drop", method="svd", rank=1)
"""A method whose fit takes no time; the noise is what lies beyond the largest direction."""
TOLERANCES = {"bert": 0.001, "t5": 0.3}
"""By which the outputs of a tiny model may move: some of its layers can lose noise, not all."""


class Blocks(nn.Module):
    """Linear layers with spikes, the last of noise only, of different strength."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(SIZE, 2 * SIZE)) for _ in range(LAYERS))
        for index, block in enumerate(self.blocks):
            weight = torch.randn(2 * SIZE, SIZE, generator=generator) / SIZE**0.5
            spike = torch.outer(
                torch.randn(2 * SIZE, generator=generator), torch.randn(SIZE, generator=generator)
            )
            strength = (4.0 + 2 * index) if index < LAYERS - 1 else 0.0
            block[0].weight.data = weight + strength * spike / spike.norm()


class Metric:
    """Minus the weighted sum of what the weights of the layers lost; it counts its calls."""

    def __init__(self, model: nn.Module, prices: tuple[float, ...] = (1.0,) * LAYERS) -> None:
        self.prices, self.calls = prices, 0
        self.start = [weight.clone() for weight in weights(model)]

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        pairs = zip(self.prices, weights(model), self.start, strict=True)
        return 1.0 - sum(price * float((new - old).norm()) for price, new, old in pairs)


def weights(model: nn.Module) -> list[torch.Tensor]:
    layers = [block[0] for block in model.blocks]
    return [
        (layer.dense() if isinstance(layer, SpikedLinear) else layer.weight).detach()
        for layer in layers
    ]


@cache
def losses() -> dict[float, list[float]]:
    """What each layer loses at each fraction, by compress itself."""
    start = weights(Blocks())
    result = {}
    for fraction in GRID:
        other = Blocks()
        compress(other, replace(CONFIG, noise_removal=fraction))
        pairs = zip(weights(other), start, strict=True)
        result[fraction] = [float((new - old).norm()) for new, old in pairs]
    return result


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
            plan = compress(other, replace(CONFIG, noise_removal=removal)).plan
            raised = next(layer for layer in plan if layer.name == name)
            nothing = not raised.compressed and not raised.dropped_energy
            assert nothing or metric(other) < 1.0 - tolerance


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


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_compressing_with_the_config_makes_the_state_that_was_evaluated(family: str) -> None:
    model = tiny_model(family)
    start = outputs(model, family)
    seen: list[torch.Tensor] = []

    def metric(model: nn.Module) -> float:
        seen.append(outputs(model, family))
        return -float((seen[-1] - start).norm() / start.norm())

    result = search(model, metric, tolerance=TOLERANCES[family], fractions=GRID)
    compress(model, result.config)
    assert 0 < len(result.removal) < len(result.layers)
    assert torch.equal(outputs(model, family), seen[-1])
    assert result.metric == -float((seen[-1] - start).norm() / start.norm())
    plans = {layer.name: layer.rank for layer in model.hf_quantizer.report.plan}
    assert {layer.name: layer.rank for layer in result.plan} == {
        name: plans[name] for name in result.removal
    }


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("stops", [None, 1, 4, 7, BrokenError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was(stops: Any) -> None:
    model = tiny_model("bert").train()
    model.encoder.layer[0].attention.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = {name: (module, module.training) for name, module in model.named_modules()}
    calls = []

    def metric(model: nn.Module) -> float:
        model.eval()
        calls.append(None)
        if len(calls) == stops or (len(calls) == 6 and not isinstance(stops, int) and stops):
            raise BrokenError if isinstance(stops, int) else stops
        return 1.0

    if stops is None:
        search(model, metric, tolerance=0.0, config=CONFIG, fractions=GRID)
    else:
        with pytest.raises(KeyboardInterrupt if stops is KeyboardInterrupt else BrokenError):
            search(model, metric, tolerance=0.0, fractions=(0.2, 0.4, 0.6, 0.8, 0.9, 1.0))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {name: (part, part.training) for name, part in model.named_modules()} == modules


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


def test_what_does_not_hold_a_second_time_is_taken_back() -> None:
    model = Blocks()
    metric, seen = Metric(model), []

    def moody(model: nn.Module) -> float:
        """Better than it is, when a state is new."""
        value = metric(model)
        seen.append(value)
        return value if seen.count(value) > 1 else value + 0.5

    lost = losses()
    tolerance = sum(lost[0.5]) * 1.2 + 0.5
    result = search(model, moody, tolerance=tolerance, config=CONFIG, fractions=GRID)
    assert within(result.metric, result.baseline, tolerance)
    assert result.removal
    tried = [entry.removal for entry in result.evaluations]
    assert tried.count(result.removal) == 2


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


def test_a_search_that_was_cut_off_is_picked_up(tmp_path: Path) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    tolerance = sum(losses()[0.5]) * 1.2
    whole = Metric(model)
    expected = search(model, whole, tolerance=tolerance, config=CONFIG, fractions=GRID)
    metric = Metric(model)

    def cut(model: nn.Module) -> float:
        if metric.calls == 6:
            raise KeyboardInterrupt
        return metric(model)

    with pytest.raises(KeyboardInterrupt):
        search(model, cut, tolerance=tolerance, config=CONFIG, fractions=GRID, resume_from=path)
    assert len(json.loads(path.read_text())["evaluations"]) == 6
    result = search(
        model, metric, tolerance=tolerance, config=CONFIG, fractions=GRID, resume_from=path
    )
    assert metric.calls == whole.calls
    assert result == expected
    again = search(
        model, metric, tolerance=tolerance, config=CONFIG, fractions=GRID, resume_from=path
    )
    assert (again, metric.calls) == (expected, whole.calls)
    assert [entry.name for entry in tmp_path.iterdir()] == ["search.json"]


def test_a_resumed_search_may_be_given_more_evaluations(tmp_path: Path) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    tolerance, metric = sum(losses()[0.5]) * 1.2, Metric(model)
    options: dict[str, Any] = {"tolerance": tolerance, "fractions": GRID, "config": CONFIG}
    first = search(model, metric, max_evaluations=6, resume_from=path, **options)
    more = search(model, metric, resume_from=path, **options)
    whole = search(model, Metric(model), **options)
    assert more.evaluations[:6] == first.evaluations
    assert more.removal == whole.removal
    assert len(more.evaluations) == metric.calls <= len(whole.evaluations) + 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tolerance": 0.2}, r"tolerance \(0\.1, now 0\.2\)"),
        ({"fractions": (0.5, 1.0)}, "fractions"),
        ({"config": replace(CONFIG, max_rank=9)}, r"max_rank \(None, now 9\)"),
        ({"model": "other"}, "weights_digest"),
    ],
)
def test_the_file_of_another_search_is_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    model, path = Blocks(), tmp_path / "search.json"
    options: dict[str, Any] = {
        "tolerance": 0.1,
        "fractions": GRID,
        "config": CONFIG,
        "resume_from": path,
    }
    search(model, lambda model: 0.0, **options)
    if change.pop("model", None):
        model.blocks[0][0].bias.data[0] += 1
    with pytest.raises(ValueError, match=f"belongs to another search, which differs in {named}"):
        search(model, lambda model: 0.0, **(options | change))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds no search"):
        search(Blocks(), lambda model: 0.0, tolerance=0.1, resume_from=path)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tolerance": -0.1}, ValueError, "tolerance must be at least 0 and finite, got -0.1"),
        ({"fractions": (0.0, 1.0)}, ValueError, r"fractions must lie in \(0, 1\]"),
        ({"fractions": ()}, ValueError, r"at least one, got \[\]"),
        ({"max_evaluations": 8}, ValueError, "max_evaluations must be at least 9, got 8"),
        ({"config": RMTConfig()}, ValueError, "noise='int8'.* set noise='drop'"),
        ({"config": RMTConfig(noise="drop", method="magnitude", fraction=0.5)}, ValueError, "magn"),
        (
            {"config": RMTConfig(noise="drop", noise_removal=0.5)},
            ValueError,
            "noise_removal=0.5 is what search finds",
        ),
        ({"evaluate": lambda model: {"accuracy": 1}}, TypeError, "must return a number"),
        ({"evaluate": lambda model: float("nan")}, ValueError, "must be finite, got nan"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type, match: str) -> None:
    options = {"evaluate": lambda model: 0.0, "tolerance": 0.1, **options}
    with pytest.raises(error, match=match):
        search(Blocks(), options.pop("evaluate"), **options)


def test_a_model_without_noise_is_refused() -> None:
    model = Blocks()
    for block in model.blocks:
        block[0].weight.data.zero_()
    with pytest.raises(ValueError, match="none of 4 layers has noise to remove"):
        search(model, lambda model: 0.0, tolerance=0.1)


def test_layers_below_the_smallest_size_are_not_searched_in() -> None:
    model = Blocks()
    small = nn.Sequential(nn.Linear(16, 16))
    model.blocks.append(small)
    result = search(model, lambda model: 0.0, tolerance=0.1, config=CONFIG, fractions=GRID)
    assert "blocks.4.0" not in result.removal
    assert "blocks.4.0" in result.layers


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_layer_whose_forward_is_hooked_is_measured_as_it_would_be(fraction: float) -> None:
    model = Blocks()
    plain = copy.deepcopy(model)
    for block in model.blocks:
        add_hook_to_module(block[0], ModelHook())
    inputs = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))
    compress(plain, replace(CONFIG, noise_removal=fraction))

    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        return float(sum(block(inputs).norm() for block in model.blocks))

    result = search(model, metric, tolerance=0.0, config=CONFIG, fractions=(fraction,))
    assert result.curve == ((fraction, metric(plain)),)


def test_a_result_survives_json() -> None:
    model = Blocks()
    tolerance = sum(losses()[0.5])
    result = search(model, Metric(model), tolerance=tolerance, config=CONFIG, fractions=GRID)
    back = SearchResult.from_json(result.to_json())
    assert back == result
    assert back.config == result.config
    assert (back.config.method, back.config.noise_removal) == ("svd", result.removal)
