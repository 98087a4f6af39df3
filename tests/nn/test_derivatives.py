"""Derivatives of compressed layers, of every kind and order, are those of their dense copies."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap

from hf_rmt import RMTConfig, compress, export_dense
from hf_rmt.nn import SpikedConv2d, SpikedLinear, StepActivation, TernaryLinear
from hf_rmt.nn.layers.latent_ternary import LatentTernaryLinear
from hf_rmt.nn.layouts import set_layout

# torch scripts its own rules when a forward-mode derivative is first asked for
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

STORES = [(noise, "packed") for noise in ("drop", "ternary", "int4", "int8", "keep")]
STORES += [("int4", "dense"), ("int8", "dense"), ("keep", "dense"), ("int4", "int8")]
SIDE, ROWS = 48, 3


def pair(noise: str, layout: str, *, images: bool = False) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network with two compressed layers of one shape, its dense copy, and an input."""
    torch.manual_seed(0)
    layers = (
        [nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)]
        if images
        else [nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE)]
    )
    network = nn.Sequential(layers[0], nn.Identity(), layers[1])
    config = RMTConfig(method="svd", rank=4, noise=noise, target_modules=["0", "2"], min_size=4)
    compress(network, config)
    dense = export_dense(copy.deepcopy(network))
    set_layout(network, layout)
    return network, dense, torch.randn(2, 4, 6, 6) if images else torch.randn(ROWS, SIDE)


def second_derivative(network: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    square = lambda: network(x).pow(3).sum()  # noqa: E731
    (first,) = torch.autograd.grad(square(), x, create_graph=True)
    first.pow(2).sum().backward()
    return x.grad


def tangent(network: nn.Module, x: Tensor) -> Tensor:
    return jvp(network, (x,), (x.flip(0),))[1]


def tangent_without_gradients(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return tangent(network, x)


def tangent_of_dual(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), forward_ad.dual_level():
        return forward_ad.unpack_dual(network(forward_ad.make_dual(x, x.flip(0)))).tangent


def pulled_back(network: nn.Module, x: Tensor) -> Tensor:
    outputs, pull = vjp(network, x)
    return pull(torch.ones_like(outputs))[0]


def curvature(network: nn.Module, x: Tensor) -> Tensor:
    return hessian(lambda row: network(row[None]).pow(3).sum())(x[0])


def of_each_row(network: nn.Module, x: Tensor) -> Tensor:
    """The gradients of the biases, sample by sample."""
    state = dict(network.named_parameters())
    loss = lambda part, row: functional_call(network, part, (row[None],)).sum()  # noqa: E731
    return vmap(grad(loss), in_dims=(None, 0))(state, x)["0.bias"]


def mapped(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vmap(lambda row: jvp(network, (row[None],), (row[None],))[1])(x)


DERIVATIVES = [second_derivative, tangent, tangent_without_gradients, tangent_of_dual]
DERIVATIVES += [pulled_back, curvature, of_each_row, mapped]


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(("noise", "layout"), STORES)
def test_derivatives_are_those_of_the_dense_network(noise, layout, derivative):
    network, dense, x = pair(noise, layout)
    found, expected = derivative(network, x), derivative(dense, x)
    if layout == "int8" and derivative in (second_derivative, curvature):
        # these depend on the outputs, which are rounded
        assert (found - expected).norm() < 0.05 * expected.norm()
        return
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("derivative", [second_derivative, tangent, tangent_without_gradients])
@pytest.mark.parametrize(("noise", "layout"), [store for store in STORES if store[1] != "int8"])
def test_derivatives_of_convolutions(noise, layout, derivative):
    network, dense, x = pair(noise, layout, images=True)
    torch.testing.assert_close(derivative(network, x), derivative(dense, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", ["packed", "int8", "dense"])
@pytest.mark.parametrize("derivative", [tangent, tangent_without_gradients, tangent_of_dual])
def test_derivatives_of_ternary_layers(layout, derivative):
    torch.manual_seed(0)
    layer = TernaryLinear.from_linear(nn.Linear(SIDE, SIDE), sparsity=0.3)
    dense, x = layer.to_dense(), torch.randn(ROWS, SIDE)
    set_layout(layer, layout)
    torch.testing.assert_close(derivative(layer, x), derivative(dense, x), rtol=1e-3, atol=1e-3)


def test_a_step_has_the_same_derivative_forwards_and_backwards():
    step, x = StepActivation([-0.5, 0.5], [1.0, 0.0, 2.0], mean=0.2), torch.linspace(-2, 2, 33)
    (backwards,) = torch.autograd.grad(step(x.requires_grad_()).sum(), x)
    forwards = jvp(step, (x.detach(),), (torch.ones_like(x),))[1]
    torch.testing.assert_close(forwards, backwards)
    assert backwards.abs().max() > 0


@pytest.mark.parametrize(
    ("layer", "dense"),
    [
        (SpikedLinear, nn.Linear),
        (SpikedConv2d, nn.Conv2d),
        (TernaryLinear, nn.Linear),
        (LatentTernaryLinear, nn.Linear),
        (StepActivation, nn.ReLU),
    ],
)
def test_a_layer_takes_its_input_by_the_name_that_the_dense_one_uses(layer, dense):
    assert list(inspect.signature(layer.forward).parameters) == list(
        inspect.signature(dense.forward).parameters
    )


@pytest.mark.parametrize(("noise", "layout"), STORES)
def test_a_layer_runs_on_meta_in_every_layout(noise, layout):
    network, _, x = pair(noise, layout)
    assert network.to("meta")(x.to("meta")).shape == (ROWS, SIDE)
