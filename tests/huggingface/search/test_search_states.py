"""The states in which `search` evaluates a model, and that it is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from hf_rmt import compress, search
from tests.huggingface.models import outputs, tiny_model
from tests.huggingface.search.search_blocks import CONFIG, GRID, SIZE, Blocks

TOLERANCES = {"bert": 0.001, "t5": 0.3}
"""By which the outputs of a tiny model may move: some of its layers can lose noise, not all."""


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
    plans = {layer.name: layer.rank for layer in model.compression_report.plan}
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


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_layer_whose_forward_is_hooked_is_measured_as_it_would_be(fraction: float) -> None:
    model = Blocks()
    plain = copy.deepcopy(model)
    for block in model.blocks:
        add_hook_to_module(block[0], ModelHook())
    inputs = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))
    compress(plain, CONFIG.replace(noise_removal=fraction))

    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        return float(sum(block(inputs).norm() for block in model.blocks))

    result = search(model, metric, tolerance=0.0, config=CONFIG, fractions=(fraction,))
    assert result.curve == ((fraction, metric(plain)),)


def test_a_mode_that_the_metric_sets_holds_for_the_states_that_follow() -> None:
    model = Blocks().train()
    model.blocks[2].eval()
    modes: list[set[bool]] = []

    def metric(model: nn.Module) -> float:
        modes.append({part.training for part in model.modules()})
        if len(modes) == 2:  # where each layer is another than the model's own
            model.eval()
        return 0.0

    search(model, metric, tolerance=0.1, config=CONFIG, fractions=GRID)
    assert modes[:2] == [{True, False}] * 2
    assert modes[2:] == [{False}] * len(modes[2:])
    assert [block.training for block in model.blocks] == [True, True, False, True]
