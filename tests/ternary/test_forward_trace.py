"""Where linears stand in a forward pass, seen on one batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN, GELUActivation

from hf_rmt.ternary.forward_trace import (
    SHARED,
    UNFOLLOWED,
    UNREACHED,
    Position,
    dummy_batch,
    layer_positions,
)
from tests.huggingface.models import tiny_model

WIDTH = 6
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Named parts in an order that a function decides."""

    def __init__(self, run: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def seen(run: Forward, names: list[str], **parts: nn.Module) -> dict[str, Position]:
    return layer_positions(Net(run, **parts), names, {"x": torch.randn(2, WIDTH)})


def test_linears_come_by_their_last_calls_and_those_without_one_first() -> None:
    found = seen(
        lambda net, x: net.a(net.b(net.a(x))),
        ["a", "b", "c"],
        **{name: linear() for name in "abc"},
    )
    assert list(found) == ["c", "b", "a"]
    assert [place.kept for place in found.values()] == [UNREACHED, UNFOLLOWED, UNFOLLOWED]


@pytest.mark.parametrize(
    "activation", [nn.Tanh(), nn.GELU(), nn.ReLU(inplace=True), GELUActivation()]
)
def test_functions_of_each_entry_are_activations(activation: nn.Module) -> None:
    found = seen(lambda net, x: net.act(net.up(x)), ["up"], up=linear(), act=activation)
    assert found == {"up": Position(activation="act")}


@pytest.mark.parametrize(
    "other",
    [nn.Softmax(dim=-1), nn.Softmax(dim=1), nn.GLU(), nn.PReLU(), nn.Identity(), nn.Dropout()],
)
def test_what_mixes_entries_or_is_trained_is_no_activation(other: nn.Module) -> None:
    found = seen(lambda net, x: net.act(net.up(x)), ["up"], up=linear(), act=other)
    assert found == {"up": Position(kept=UNFOLLOWED)}


def test_an_activation_may_follow_its_linear_at_every_call() -> None:
    def twice(net: Any, x: Tensor) -> Tensor:
        return net.act(net.up(net.act(net.up(x))))

    assert seen(twice, ["up"], up=linear(), act=nn.Tanh()) == {"up": Position(activation="act")}


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.act(net.block[0](x)),
        lambda net, x: net.block[1](net.block[0](x)) + net.block[1](x),
    ],
    ids=["elsewhere", "twice"],
)
def test_an_activation_of_another_module_or_of_more_than_the_linear_stays(run: Forward) -> None:
    found = seen(run, ["block.0"], block=nn.Sequential(linear(), nn.Tanh()), act=nn.Tanh())
    place = found["block.0"]
    assert (place.activation, str(place.function), place.reader) == ("", "Tanh", "")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.tanh, "tanh"),
        (lambda x: x.sigmoid(), "sigmoid"),
        (lambda x: x.tanh_(), "tanh"),
        (lambda x: functional.relu(x, inplace=True), "relu"),
        (lambda x: functional.gelu(x, approximate="tanh"), "gelu(approximate='tanh')"),
        (lambda x: functional.leaky_relu(x, 0.3), "leaky_relu(negative_slope=0.3)"),
        (lambda x: nn.ReLU()(x), "ReLU"),
        (lambda x: ACT2FN["gelu_new"](x), "NewGELUActivation"),
        (lambda x: functional.silu(functional.dropout(x, training=False)), "silu"),
    ],
)
def test_functions_and_modules_that_forward_calls_are_seen_with_their_reader(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    found = seen(
        lambda net, x: net.out(net.drop(function(net.up(x)))),
        ["up", "out"],
        up=linear(),
        out=linear(),
        drop=nn.Dropout(),
    )
    place = found["up"]
    assert (place.activation, place.reader, place.kept) == ("", "out", "")
    assert place.function.name == name
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.equal(torch.tensor(place.function.values(x.numpy())), function(x.clone()))
    assert found["out"].kept == UNFOLLOWED
    again = pickle.loads(pickle.dumps(place)).function
    assert again.slopes(x.numpy()) == pytest.approx(place.function.slopes(x.numpy()))


@pytest.mark.parametrize(
    ("run", "kept"),
    [
        (lambda net, y: y * torch.sigmoid(y), SHARED),
        (lambda net, y: (torch.tanh(y), y), SHARED),
        (lambda net, y: torch.tanh(torch.relu(y)) + torch.sigmoid(y), SHARED),
        (lambda net, y: torch.tanh(y) + torch.relu(net.up(y)), SHARED),
        (lambda net, y: torch.relu(y + 1), UNFOLLOWED),
        (lambda net, y: y.softmax(-1), UNFOLLOWED),
    ],
    ids=["silu by hand", "returned", "two readers", "another each time", "a sum", "softmax"],
)
def test_a_linear_that_more_than_one_activation_reads_is_kept(run: Any, kept: str) -> None:
    found = seen(lambda net, x: run(net, net.up(x)), ["up"], up=linear())
    assert found == {"up": Position(kept=kept)}


@pytest.mark.parametrize(
    "run",
    [
        lambda net, h: net.out(h) + h,
        lambda net, h: (net.out(h), h),
        lambda net, h: net.out(net.norm(h)),
        lambda net, h: h,
    ],
    ids=["residual", "returned", "normalised", "the output"],
)
def test_only_a_linear_that_alone_reads_an_activation_is_its_reader(run: Any) -> None:
    found = seen(
        lambda net, x: run(net, torch.relu(net.up(x))),
        ["up"],
        up=linear(),
        out=linear(),
        norm=nn.LayerNorm(WIDTH),
    )
    assert (str(found["up"].function), found["up"].reader) == ("relu", "")


@pytest.mark.parametrize(
    ("before", "norm"), [(nn.LayerNorm(WIDTH), "before"), (nn.RMSNorm(WIDTH), ""), (nn.Tanh(), "")]
)
def test_the_norm_is_the_layer_norm_that_the_linear_reads(before: nn.Module, norm: str) -> None:
    found = seen(
        lambda net, x: net.act(net.up(net.before(x))),
        ["up"],
        before=before,
        up=linear(),
        act=nn.GELU(),
    )
    assert found == {"up": Position(activation="act", norm=norm)}


def test_a_tensor_in_the_memory_of_one_that_is_gone_is_another() -> None:
    def forgetful(net: Any, x: Tensor) -> Tensor:
        net.up(x)
        return net.act(x + 1)  # a new tensor, where the forgotten one was

    assert seen(forgetful, ["up"], up=linear(), act=nn.Tanh()) == {"up": Position(kept=UNFOLLOWED)}


@pytest.mark.parametrize("size", [32, [32, 16]])
def test_a_picture_without_meaning_has_the_size_that_the_config_says(size: Any) -> None:
    model = tiny_model("vit").bfloat16()
    model.config.image_size = size
    (picture,) = dummy_batch(model).values()
    assert picture.shape == (1, 3, 32, 32 if size == 32 else 16)
    assert picture.dtype == torch.bfloat16
    model.config.image_size = 32
    assert layer_positions(model, ["pooler.dense"], dummy_batch(model)) == {
        "pooler.dense": Position(activation="activation")
    }


def test_other_models_say_what_they_run_on() -> None:
    model = SimpleNamespace(
        dummy_inputs={"x": torch.zeros(2)}, device=torch.device("meta"), main_input_name="input_ids"
    )
    assert dummy_batch(model)["x"].device.type == "meta"
    with pytest.raises(ValueError, match="inputs of Linear are unknown"):
        dummy_batch(linear())
