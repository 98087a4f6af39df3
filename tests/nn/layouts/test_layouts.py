"""Every layout is held to the same tests: those of the dense layer that it stands for."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hf_rmt.nn import NOISE_KINDS, SpikedConv2d, SpikedLinear
from hf_rmt.nn.counterparts import densify
from hf_rmt.nn.layouts import LAYOUTS, set_layout
from hf_rmt.nn.layouts.parking import is_parked
from tests.nn.fitting import losses_of
from tests.nn.layouts.layers import IN, OUT, RANK, allowed, distance, layer_of, normal, placed

NAMES = tuple(name for name, kind in LAYOUTS.items() if not kind.by_name_only)
DTYPES = (torch.float32, torch.bfloat16)
STORED = tuple(kind for kind in NOISE_KINDS if kind != "drop")


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(), (1,), (2, 9), (2, 0), (300,)])
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_is_that_of_the_dense_weight(
    noise: str, dtype: torch.dtype, name: str, lead: tuple[int, ...], gradients: bool
) -> None:
    layer, x = placed(noise, name, dtype), normal(*lead, IN, seed=4).to(dtype)
    exact = nn.functional.linear(x.double(), layer.dense().double(), layer.bias.double())
    with torch.set_grad_enabled(gradients):
        result = layer(x)
    assert result.dtype == dtype
    assert result.shape == exact.shape
    error = (result.double() - exact).square().mean(-1, keepdim=True).sqrt()
    assert (error <= allowed(layer, x)).all()
    assert layer.layout == (name if noise != "drop" else "packed")


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_the_dense_weight(
    noise: str, dtype: torch.dtype, name: str, training: bool
) -> None:
    layer = placed(noise, name, dtype).train(training)
    fixed = torch.zeros(OUT, IN).double() if noise == "drop" else layer.noise.dense().double()
    x = normal(4, 5, IN, seed=5).to(dtype).requires_grad_()
    other = x.detach().double().requires_grad_()
    weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    target = normal(4, 5, OUT, seed=6)
    (layer(x).float() * target).sum().backward()
    dense = weight[:, IN:].T @ weight[:, :IN] + fixed
    (nn.functional.linear(other, dense, bias) * target.double()).sum().backward()
    for ours, oracle in [(x, other), (layer.weight, weight), (layer.bias, bias)]:
        size = oracle.grad.square().mean().sqrt()
        error = (ours.grad.double() - oracle.grad).square().mean().sqrt()
        assert error < 8 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("noise", STORED)
@pytest.mark.parametrize("name", NAMES)
def test_the_signal_trains_and_evaluation_sees_it(noise: str, name: str) -> None:
    layer = placed(noise, name).train()
    x, target = normal(64, IN, seed=8), normal(64, OUT, seed=9)
    losses = losses_of(layer, x, target, lr=1e-4, steps=5)
    assert losses[-1] < losses[0]
    layer.eval()
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(1.5)
        after, exact = layer(x), nn.functional.linear(x, layer.dense(), layer.bias)
    assert not torch.allclose(before, after)
    assert ((after - exact).square().mean(-1, keepdim=True).sqrt() <= allowed(layer, x)).all()


def write_data(layer: SpikedLinear) -> None:
    layer.weight.data.mul_(2)
    layer.eval()


def step_fused(layer: SpikedLinear) -> None:
    """Fused optimizers leave the version of a tensor as it was."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def train_in_evaluation_mode(layer: SpikedLinear) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        layer(normal(8, IN, seed=3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("noise", STORED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [write_data, step_fused, train_in_evaluation_mode])
def test_changes_that_leave_no_version_are_seen(
    noise: str, dtype: torch.dtype, name: str, change: Callable[[SpikedLinear], None]
) -> None:
    layer, x = placed(noise, name, dtype), normal(7, IN, seed=8).to(dtype)
    with torch.no_grad():
        before = layer(x)
    change(layer)
    with torch.no_grad():
        after = layer(x)
        layer._reset_layout()
        assert torch.equal(after, layer(x))
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_that_of_the_packed_layer(noise: str, name: str) -> None:
    layer = layer_of(noise)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    set_layout(layer, name)
    layer(normal(3, IN))
    state = layer.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(before[key], state[key]) for key in before)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = SpikedLinear(IN, OUT, RANK, noise=noise)
    set_layout(other, name)
    other(normal(1, IN))
    other.load_state_dict(torch.load(file))
    x = normal(3, IN, seed=7)
    with torch.no_grad():
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_copies_compute_the_same_and_are_free(noise: str, name: str) -> None:
    layer, x = placed(noise, name), normal(3, IN, seed=7)
    with torch.no_grad():
        expected = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert twin.layout == layer.layout
            assert torch.equal(twin(x), expected)
            twin.weight.zero_()
            assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("noise", STORED)
@pytest.mark.parametrize("name", NAMES)
def test_going_back_to_packed_changes_nothing(noise: str, name: str) -> None:
    layer, x = layer_of(noise), normal(3, IN, seed=7)
    with torch.no_grad():
        expected = layer(x)
        set_layout(layer, name)
        layer(x)
        set_layout(layer, "packed")
        assert torch.equal(layer(x), expected)
    assert not any(is_parked(buffer) for buffer in layer.buffers())


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_casts_and_other_inputs(noise: str, name: str) -> None:
    layer, x = placed(noise, name), normal(3, IN)
    with torch.no_grad():
        exact = layer(x)
        for dtype in (torch.bfloat16, torch.float16):
            assert layer(x.to(dtype)).dtype == dtype
            assert distance(layer(x.to(dtype)), exact) < 0.02
        half = layer.bfloat16()(x.bfloat16())
    assert distance(half, exact) < 0.02


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_autocast(noise: str, name: str) -> None:
    layer, x = placed(noise, name), normal(3, IN).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    assert distance(result, layer(x)) < 0.02
    result.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(noise: str, name: str) -> None:
    torch.compiler.reset()
    layer, x = placed(noise, name), normal(4, IN).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
        layer.weight.mul_(1.1)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dense().sum(0).expand(4, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_densify_gives_the_weights_of_the_packed_layer(name: str) -> None:
    model = nn.Sequential(layer_of("int4"))
    expected = model[0].dense().detach().clone()
    set_layout(model, name)
    model(normal(2, IN))
    assert torch.equal(densify(model)[0].weight, expected)


@pytest.mark.parametrize("name", ["packed", "dense"])
@pytest.mark.parametrize("gradients", [True, False])
def test_convolutions(name: str, gradients: bool) -> None:
    layer = SpikedConv2d(8, 12, 2, kernel_size=3, padding=1, noise="int8")
    layer.noise.store(normal(12, 72))
    with torch.no_grad():
        layer.weight.copy_(normal(2, 84, seed=1))
    x = normal(2, 8, 6, 6, seed=2)
    kernel = layer.dense().detach().unflatten(1, (8, 3, 3))
    expected = nn.functional.conv2d(x, kernel, layer.bias, padding=1)
    set_layout(layer, name)
    for training in (True, False):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(layer.train(training)(x), expected, rtol=1e-4, atol=1e-4)
