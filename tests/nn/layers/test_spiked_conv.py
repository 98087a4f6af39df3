from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from hf_rmt.nn import NOISE_KINDS, SpikedConv2d, SpikedLinear
from hf_rmt.nn.layers.spiked_conv import geometry_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel lengths:UserWarning"
)  # torch's own convolution, the oracle

IN, OUT, RANK = 6, 10, 3
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "point": {"kernel_size": 1},
    "strided point": {"kernel_size": 1, "stride": 2},
    "number of each": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    "rectangle": {
        "kernel_size": (3, 5),
        "stride": (2, 1),
        "padding": (0, 2),
        "dilation": (1, 2),
    },
    "patches": {"kernel_size": (4, 3), "stride": (4, 3)},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even": {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 3)},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "stride": 2},
    "circular": {"kernel_size": (2, 4), "padding": "same", "padding_mode": "circular"},
}
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(
    noise: str, geometry: dict[str, Any], *, rank: int = RANK, bias: bool = True
) -> SpikedConv2d:
    dense = nn.Conv2d(IN, OUT, **geometry, device="meta")
    columns = dense.weight[0].numel()
    weight = normal(OUT, columns) / columns**0.5
    left, right = normal(OUT, rank, seed=1), normal(rank, columns, seed=2) / columns**0.5
    return SpikedConv2d.from_factors(
        left, right, weight, normal(OUT, seed=3) if bias else None, noise=noise, **geometry
    )


def dense_of(layer: SpikedConv2d, geometry: dict[str, Any]) -> nn.Conv2d:
    """Torch's convolution, in float64, with the weight that the layer acts as."""
    dense = nn.Conv2d(IN, OUT, **geometry, bias=layer.bias is not None).double()
    dense.weight.data = layer.dense().detach().double().reshape(dense.weight.shape)
    if layer.bias is not None:
        dense.bias.data = layer.bias.detach().double()
    return dense


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the error in units of what is expected."""
    assert found.shape == expected.shape
    error = found.detach().double() - expected.detach().double()
    return float(error.norm() / expected.detach().norm())


@each_geometry
@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_that_of_the_dense_convolution(
    noise: str, geometry: dict[str, Any], gradients: bool, bias: bool
) -> None:
    layer = layer_of(noise, geometry, bias=bias)
    x = normal(3, IN, 13, 14, seed=4)
    with torch.set_grad_enabled(gradients):
        result = layer(x)
    assert distance(result, dense_of(layer, geometry)(x.double())) < 1e-6


@each_geometry
@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_gradients_are_those_of_the_dense_convolution(noise: str, geometry: dict[str, Any]) -> None:
    """The factors' gradients follow from the kernel's: G right' and left' G."""
    layer = layer_of(noise, geometry)
    dense = dense_of(layer, geometry)
    x = normal(3, IN, 13, 14, seed=5).requires_grad_()
    other = x.detach().double().requires_grad_()
    result = layer(x)
    target = normal(*result.shape, seed=6)
    (result * target).sum().backward()
    (dense(other) * target.double()).sum().backward()
    left, right = (factor.detach().double() for factor in layer.factors())
    kernel = dense.weight.grad.flatten(1)
    expected = torch.cat([left.T @ kernel, right @ kernel.T], dim=1)
    assert distance(x.grad, other.grad) < 1e-6
    assert distance(layer.weight.grad, expected) < 1e-6
    assert distance(layer.bias.grad, dense.bias.grad) < 1e-6


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [True, False])
def test_half_precision(noise: str, dtype: torch.dtype, gradients: bool) -> None:
    """Four roundings, each of half an eps at most: of the signal twice, the noise, the sum."""
    geometry = GEOMETRIES["number of each"]
    layer = layer_of(noise, geometry).to(dtype)
    x = normal(2, IN, 9, 9).to(dtype).requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        result = layer(x)
    assert result.dtype == dtype
    dense, other = dense_of(layer, geometry), x.detach().double().requires_grad_()
    expected = dense(other)
    assert distance(result, expected) < 2 * torch.finfo(dtype).eps
    if gradients:
        result.sum().backward()
        expected.sum().backward()
        assert x.grad.dtype == layer.weight.grad.dtype == dtype
        assert distance(x.grad, other.grad) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("gradients", [True, False])
def test_without_signal_the_noise_alone_acts(noise: str, gradients: bool) -> None:
    geometry = GEOMETRIES["number of each"]
    layer = layer_of(noise, geometry, rank=0)
    x = normal(2, IN, 9, 9).requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        result = layer(x)
    assert distance(result, dense_of(layer, geometry)(x.double())) < 1e-6
    if gradients:
        result.sum().backward()
        assert layer.weight.grad.shape == layer.weight.shape == (0, IN * 9 + OUT)


@each_geometry
def test_a_picture_without_a_batch_and_a_batch_without_a_picture(geometry: dict[str, Any]) -> None:
    layer, x = layer_of("int8", geometry), normal(IN, 13, 14).requires_grad_()
    batch = x.detach()[None].requires_grad_()
    torch.testing.assert_close(layer(x), layer(batch)[0])
    layer(x).sum().backward()
    layer(batch).sum().backward()
    torch.testing.assert_close(x.grad, batch.grad[0])
    assert layer(batch[:0]).shape == (0, *layer(x).shape)


@pytest.mark.parametrize("noise", ["ternary", "int4", "int8"])
def test_backward_keeps_no_dense_kernel(noise: str) -> None:
    geometry = {"kernel_size": 3}
    layer, saved = layer_of(noise, geometry), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        layer(normal(1, IN, 3, 3).requires_grad_())
    assert saved
    assert max(saved) < OUT * IN * 9


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_reloads_on_meta_without_difference(noise: str) -> None:
    geometry = GEOMETRIES["rectangle"]
    layer, x = layer_of(noise, geometry), normal(2, IN, 9, 12)
    empty = SpikedConv2d(IN, OUT, RANK, **geometry, noise=noise, device="meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    for twin in (empty, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("rank", [0, RANK])
def test_a_plain_convolution_refuses_the_state(noise: str, rank: int) -> None:
    layer = layer_of(noise, {"kernel_size": 1}, rank=rank)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Conv2d(IN, OUT, 1).load_state_dict(layer.state_dict(), strict=False)


def test_a_convolution_of_size_one_is_a_linear_layer_on_pixels() -> None:
    layer = layer_of("int4", {"kernel_size": 1})
    linear = SpikedLinear(IN, OUT, RANK, noise="int4")
    linear.load_state_dict(layer.state_dict())
    x = normal(2, IN, 4, 5)
    torch.testing.assert_close(layer(x), linear(x.movedim(1, 3)).movedim(3, 1))


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_autocast(noise: str) -> None:
    layer = layer_of(noise, {"kernel_size": 3, "padding": 1})
    x = normal(2, IN, 5, 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    assert distance(result, layer(x)) < 2 * torch.finfo(torch.bfloat16).eps
    result.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


def test_channels_last_inputs() -> None:
    layer, x = layer_of("int8", {"kernel_size": 3}), normal(2, IN, 8, 8)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    layer = layer_of("int4", GEOMETRIES["same, even"])
    x = normal(2, IN, 8, 8).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    found, x.grad = x.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_the_cheaper_order_of_products_is_taken() -> None:
    """Merging costs rank in k k out, two thin convolutions cost pixels rank (in k k + out)."""
    layer = layer_of("int8", {"kernel_size": 3, "stride": 2})
    even = IN * 9 * OUT / (IN * 9 + OUT)
    with torch.no_grad():
        assert not layer._merges(torch.zeros(int(even), IN, 2, 2))
        assert layer._merges(torch.zeros(int(even) + 1, IN, 2, 2))
    assert not layer._merges(torch.zeros(1000, IN, 2, 2))


@each_geometry
def test_the_geometry_is_read_as_torch_reads_it(geometry: dict[str, Any]) -> None:
    dense = nn.Conv2d(IN, OUT, **geometry)
    layer = SpikedConv2d(IN, OUT, 1, **geometry)
    assert geometry_of(layer) == geometry_of(dense)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (IN, OUT, dense.groups)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 10\], got 11"):
        SpikedConv2d(IN, OUT, 11, kernel_size=3)
    with pytest.raises(ValueError, match="padding='same' is not supported for strided"):
        SpikedConv2d(IN, OUT, 1, kernel_size=3, stride=2, padding="same")
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        SpikedConv2d(IN, OUT, 1, kernel_size=3, padding_mode="mirror")


def test_repr_names_sizes_and_geometry() -> None:
    text = repr(layer_of("int4", {"kernel_size": 3, "padding": "same"}))
    assert (
        "SpikedConv2d(\n  6, 10, rank=3, kernel_size=(3, 3), stride=(1, 1), padding='same'" in text
    )
    assert "NoiseStore(int4)" in text
