"""One module in the place of another keeps what a user has put on the old one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hf_rmt.nn import SpikedConv2d, SpikedLinear, TernaryLinear
from hf_rmt.nn.counterparts import densify
from hf_rmt.nn.swap import BOUND_HOOK, CARRIERS, swap_module, user_attributes, why_not_swapped

LAYERS = [
    nn.Linear(6, 4),
    nn.Conv2d(2, 3, 3),
    SpikedLinear(6, 4, 2),
    SpikedConv2d(2, 3, 2, kernel_size=3),
    TernaryLinear(6, 4),
]


def spiked_in(model: nn.Module, name: str = "0") -> SpikedLinear:
    dense: Any = model.get_submodule(name)
    return SpikedLinear.empty_like(dense, 2, "drop")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_what_a_constructor_sets_is_not_taken_for_a_user_s(layer: nn.Module) -> None:
    assert user_attributes(layer) == []


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_layers_stay_frozen_in_their_mode_and_back(frozen: bool, training: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 4)).train(training).requires_grad_(not frozen)
    swap_module(model, "0", spiked_in(model))
    assert [parameter.requires_grad for parameter in model.parameters()] == [not frozen] * 2
    assert model[0].training is training
    densify(model)
    assert type(model[0]) is nn.Linear
    assert [parameter.requires_grad for parameter in model.parameters()] == [not frozen] * 2
    assert model[0].training is training


def test_a_layer_without_a_trainable_weight_remembers_the_frozen_one() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).requires_grad_(False)
    swap_module(model, "0", TernaryLinear.from_linear(nn.Linear(6, 4)))
    densify(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_hooks_go_with_the_layer_and_can_be_removed_there() -> None:
    model, heard = nn.Sequential(nn.Linear(6, 4)), []
    layer = model[0]
    handles = [
        layer.register_forward_hook(lambda *_: heard.append("after")),
        layer.register_forward_pre_hook(lambda *_: heard.append("before")),
        layer.register_forward_hook(lambda *_, **__: heard.append("named"), with_kwargs=True),
        layer.register_full_backward_hook(lambda *_: heard.append("back")),
    ]
    swap_module(model, "0", spiked_in(model))
    model(torch.randn(2, 6, requires_grad=True)).sum().backward()
    assert heard == ["before", "after", "named", "back"]
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 6))
    assert len(heard) == 4


def test_attributes_of_a_user_go_with_the_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    model[0].nickname = "first"
    swap_module(model, "0", spiked_in(model))
    assert model[0].nickname == "first"
    densify(model)
    assert model[0].nickname == "first"
    assert not hasattr(model[0], "rank")


def test_what_cannot_be_moved_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    new = spiked_in(model)
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    old = model[0]
    with pytest.raises(ValueError, match=r"'0' cannot be replaced: .*remove_parametrizations"):
        swap_module(model, "0", new)
    assert model[0] is old


def test_a_hook_of_accelerate_is_moved_where_somebody_knows_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    model[0]._hf_hook = object()
    monkeypatch.delitem(CARRIERS, BOUND_HOOK, raising=False)
    assert "accelerate has put a hook around it" in why_not_swapped(model[0])
    moved = []
    monkeypatch.setitem(CARRIERS, BOUND_HOOK, lambda old, new: moved.append((old, new)))
    old, new = model[0], spiked_in(model)
    swap_module(model, "0", new)
    assert moved == [(old, new)]
