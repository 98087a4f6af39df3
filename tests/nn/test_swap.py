"""One module in the place of another keeps what a user has put on the old one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hf_rmt.nn import LatentTernaryLinear, SpikedConv2d, SpikedLinear, TernaryLinear
from hf_rmt.nn.counterparts import densify
from hf_rmt.nn.layers.step_activation import StepActivation
from hf_rmt.nn.swap import (
    BOUND_HOOK,
    CARRIERS,
    OF_COMPRESSED,
    OWN_ATTRIBUTES,
    swap_module,
    user_attributes,
    why_not_swapped,
)
from tests.nn.unmovable import UNMOVABLE, patch_forward

COMPRESSED = [
    SpikedLinear(6, 4, 2),
    SpikedConv2d(2, 3, 2, kernel_size=3),
    TernaryLinear(6, 4),
]
LAYERS = [
    nn.Linear(6, 4),
    nn.Conv2d(2, 3, 3),
    LatentTernaryLinear(6, 4),
    *COMPRESSED,
]


def spiked_in(model: nn.Module, name: str = "0") -> SpikedLinear:
    dense: Any = model.get_submodule(name)
    return SpikedLinear.empty_like(dense, 2, "drop")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_what_a_constructor_sets_is_not_taken_for_a_user_s(layer: nn.Module) -> None:
    assert user_attributes(layer) == []
    assert why_not_swapped(layer) == ""


def test_the_names_that_compressed_layers_use_are_known() -> None:
    for layer in COMPRESSED:
        held = {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}
        own = {name for name in held if not hasattr(type(layer), name)}
        assert own <= OWN_ATTRIBUTES | OF_COMPRESSED


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


@pytest.mark.parametrize("way", UNMOVABLE)
def test_no_dense_layer_is_replaced_that_carries_more(way: str) -> None:
    change, words = UNMOVABLE[way]
    model = nn.Sequential(nn.Linear(6, 4))
    new = spiked_in(model)
    change(model[0])
    old = model[0]
    with pytest.raises(ValueError, match=f"'0' cannot be replaced: .*{words}"):
        swap_module(model, "0", new)
    assert model[0] is old


@pytest.mark.parametrize("way", UNMOVABLE)
def test_no_compressed_layer_becomes_dense_that_carries_more(way: str) -> None:
    change, words = UNMOVABLE[way]
    model = nn.Sequential(SpikedLinear(4, 6, 2), SpikedLinear(6, 4, 2))
    change(model[1])
    first = model[0]
    with pytest.raises(ValueError, match=f"'1' cannot be replaced: .*{words}"):
        densify(model)
    assert model[0] is first


@pytest.mark.parametrize("name", sorted(OF_COMPRESSED))
def test_an_attribute_with_a_name_of_compressed_layers_is_not_lost(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    new = spiked_in(model)
    setattr(model[0], name, "mine")
    with pytest.raises(ValueError, match=f"its attribute '{name}' .*rename the attribute"):
        swap_module(model, "0", new)


def test_an_attribute_that_the_new_layer_uses_is_refused() -> None:
    class Odd(SpikedLinear):
        odd = "class"

    model = nn.Sequential(nn.Linear(6, 4))
    model[0].odd = "mine"
    with pytest.raises(ValueError, match="its attribute 'odd' has a name that compressed layers"):
        swap_module(model, "0", Odd(6, 4, 2))


def test_attributes_with_an_underscore_and_those_changed_since_go_with_the_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    model[0]._nickname, dense = "first", model[0]
    swap_module(model, "0", spiked_in(model))
    assert model[0]._nickname == "first"
    model[0]._nickname = "second"
    swap_module(model, "0", dense)
    assert model[0] is dense
    assert model[0]._nickname == "second"


def test_an_activation_gets_no_attribute_that_it_has_itself() -> None:
    model = nn.Sequential(StepActivation([0.0], [0.0, 1.0], width=2.0))
    swap_module(model, "0", StepActivation([0.0], [0.0, 1.0], width=3.0))
    assert model[0].width == 3.0


@pytest.mark.parametrize("kind", ["spiked", "ternary"])
def test_attributes_of_weight_and_bias_go_with_the_layer_and_back(kind: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    model[0].weight.lr_scale, model[0].bias.no_decay = 0.1, True
    model[0].weight._is_hf_initialized = True
    new: Any = spiked_in(model) if kind == "spiked" else TernaryLinear.from_linear(model[0])
    swap_module(model, "0", new)
    if kind == "spiked":
        assert model[0].weight.lr_scale == 0.1
    assert not hasattr(model[0].weight, "_is_hf_initialized")
    assert model[0].bias.no_decay
    densify(model)
    assert model[0].weight.lr_scale == 0.1
    assert model[0].bias.no_decay


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_hooks_on_the_gradient_of_a_bias_go_with_it(dtype: torch.dtype | None) -> None:
    model, heard = nn.Sequential(SpikedLinear(6, 4, 2)), []
    handles = [
        model[0].bias.register_hook(heard.append),
        model[0].bias.register_post_accumulate_grad_hook(heard.append),
    ]
    densify(model, dtype=dtype)
    model(torch.randn(2, 6, dtype=dtype)).sum().backward()
    assert len(heard) == 2
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 6, dtype=dtype)).sum().backward()
    assert len(heard) == 2


def test_hooks_of_a_training_s_own_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(6, 4))

    def step(_: Any) -> None: ...

    step.__module__ = "transformers.trainer_optimizer"
    model[0].weight.register_post_accumulate_grad_hook(step)
    assert why_not_swapped(model[0]) == ""
    model[0].weight.register_post_accumulate_grad_hook(lambda _: None).remove()
    assert why_not_swapped(model[0]) == ""


def test_a_forward_beneath_and_above_the_hook_of_accelerate_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    monkeypatch.setitem(CARRIERS, BOUND_HOOK, lambda old, new: None)
    plain, beneath, above = (nn.Linear(6, 4) for _ in range(3))
    patch_forward(beneath)
    for layer in (plain, beneath, above):
        hooks.add_hook_to_module(layer, hooks.ModelHook())
    patch_forward(above)
    assert [bool(why_not_swapped(layer)) for layer in (plain, beneath, above)] == [
        False,
        True,
        True,
    ]
    hooks.remove_hook_from_module(plain)
    assert "forward" in vars(plain)
    assert why_not_swapped(plain) == ""


@pytest.mark.parametrize("frozen", [True, False])
def test_a_layer_that_was_made_in_inference_mode_is_replaced(frozen: bool) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 4)).requires_grad_(not frozen)
    new = spiked_in(model)
    new.bias = model[0].bias
    swap_module(model, "0", new)
    densify(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == [not frozen] * 2
    assert not any(parameter.is_inference() for parameter in model.parameters())
