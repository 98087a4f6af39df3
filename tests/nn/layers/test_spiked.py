from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_rmt.nn import NOISE_KINDS, SpikedLinear, TernaryLinear, stored_bits
from hf_rmt.nn.layouts import set_layout
from tests.nn.fitting import losses_of

PACKED = ("ternary", "int4", "int8")
OUT, IN, RANK = 36, 50, 3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spiked_weight() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight and the balanced factors of its three largest directions."""
    weight = normal(OUT, IN) + 2 * normal(OUT, RANK, seed=1) @ normal(RANK, IN, seed=2)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = s[:RANK].sqrt()
    return weight, u[:, :RANK] * root, root[:, None] * v[:RANK]


def layer_of(noise: str, dtype: torch.dtype = torch.float32, *, rank: int = RANK) -> SpikedLinear:
    weight, left, right = (tensor.to(dtype) for tensor in spiked_weight())
    bias = normal(OUT, seed=3).to(dtype)
    return SpikedLinear.from_factors(left[:, :rank], right[:rank], weight, bias, noise=noise)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Sums of 50 products of size 10, a few roundings each."""
    return {"rtol": 0.0, "atol": 2000 * torch.finfo(dtype).eps}


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lead", [(), (2,), (3, 4), (2, 0), (40,)])
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_is_that_of_the_dense_weight(
    noise: str, dtype: torch.dtype, lead: tuple[int, ...], gradients: bool
) -> None:
    layer = layer_of(noise, dtype)
    x = normal(*lead, IN, seed=4).to(dtype)
    expected = nn.functional.linear(x.float(), layer.dense().float(), layer.bias.float())
    with torch.set_grad_enabled(gradients):
        result = layer(x)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, **tolerance(dtype))


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_gradients_are_those_of_the_dense_weight(noise: str) -> None:
    layer = layer_of(noise)
    fixed = layer.noise.dense() if noise != "drop" else torch.zeros(OUT, IN)
    x, other = (normal(4, 5, IN, seed=5).requires_grad_() for _ in range(2))
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    target = normal(4, 5, OUT, seed=6)
    (layer(x) * target).sum().backward()
    dense = weight[:, IN:].T @ weight[:, :IN] + fixed
    (nn.functional.linear(other, dense, bias) * target).sum().backward()
    pairs = [(x, other), (layer.weight, weight), (layer.bias, bias)]
    for ours, oracle in pairs:
        torch.testing.assert_close(ours.grad, oracle.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("noise", PACKED)
def test_backward_keeps_no_dense_copy(noise: str) -> None:
    layer, saved = layer_of(noise), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        layer(normal(2, IN).requires_grad_())
    assert saved
    assert max(saved) < OUT * IN


@pytest.mark.parametrize("noise", PACKED)
def test_rounding_of_the_factors_goes_into_the_noise(noise: str) -> None:
    """Signal and noise make up the weight as exactly as the noise store allows, no more error."""
    weight, left, right = spiked_weight()
    layer = layer_of(noise)
    assert torch.equal(layer.weight, layer.weight.bfloat16().float())
    residual = (weight - left @ right).norm()
    error = (layer.dense() - weight).norm() / residual
    assert error < {"int8": 0.006, "int4": 0.09, "ternary": 0.5}[noise]


@pytest.mark.parametrize("noise", ["ternary", "int4"])
def test_inputs_along_the_signal_see_the_rounding_of_factors_only(noise: str) -> None:
    """Without the refit the noise's rounding along the signal is 2.5 times the bound for int4."""
    weight, _, right = spiked_weight()
    error = (layer_of(noise).dense() - weight) @ torch.linalg.qr(right.T).Q
    assert error.norm() < weight.norm() * 2**-9


def test_keep_is_exact() -> None:
    weight, left, right = spiked_weight()
    layer = layer_of("keep")
    assert torch.equal(layer.factors()[0], left)
    assert torch.equal(layer.factors()[1], right)
    torch.testing.assert_close(layer.dense(), weight, rtol=0, atol=1e-5)


def test_drop_is_the_signal_alone() -> None:
    _, left, right = spiked_weight()
    layer = SpikedLinear.from_factors(left, right, None, None, noise="drop")
    torch.testing.assert_close(layer.dense(), left @ right)
    assert layer.bias is None


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (7, 5)])
@pytest.mark.parametrize("rank", [0, 1])
def test_any_shape_and_rank(noise: str, shape: tuple[int, int], rank: int) -> None:
    weight = normal(*shape)
    left, right = normal(shape[0], rank), normal(rank, shape[1], seed=1)
    layer = SpikedLinear.from_factors(left, right, weight, None, noise=noise)
    x = normal(6, shape[1], seed=2).requires_grad_()
    torch.testing.assert_close(layer(x), x @ layer.dense().T)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(x.grad, layer.dense().sum(0).expand(6, -1))
    factors = [p for p in layer.state_dict().values() if p.shape == layer.weight.shape]
    assert layer.weight.shape == (rank, sum(shape))
    assert factors


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_reloads_on_meta_without_difference(noise: str) -> None:
    layer = layer_of(noise)
    empty = SpikedLinear(IN, OUT, RANK, noise=noise, device="meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = normal(3, IN, seed=7)
    assert torch.equal(empty(x), layer(x))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("rank", [0, RANK])
def test_a_plain_linear_refuses_the_state(noise: str, rank: int) -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for weight|Unexpected key"):
        nn.Linear(IN, OUT).load_state_dict(layer_of(noise, rank=rank).state_dict())
    for name, tensor in layer_of(noise, rank=rank).state_dict().items():
        if name == "weight":
            assert tensor.shape[1] == IN + OUT


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_input_of_another_dtype(noise: str) -> None:
    layer, x = layer_of(noise), normal(3, IN)
    for dtype in (torch.bfloat16, torch.float16):
        assert layer(x.to(dtype)).dtype == dtype
    result = copy.deepcopy(layer).bfloat16()(x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, layer(x), rtol=0, atol=0.5)


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_autocast(noise: str) -> None:
    layer, x = layer_of(noise), normal(3, IN).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
        assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), layer(x), rtol=0, atol=1.0)
    result.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_signal_trains_and_noise_does_not(noise: str) -> None:
    layer = layer_of(noise)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    before = copy.deepcopy(layer.noise.state_dict())
    x, target = normal(64, IN, seed=8), normal(64, OUT, seed=9)
    losses = losses_of(layer, x, target, lr=1e-3, steps=20)
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[key], value) for key, value in layer.noise.state_dict().items())


def test_bias_parameter_is_shared() -> None:
    weight, left, right = spiked_weight()
    bias = nn.Parameter(normal(OUT))
    assert SpikedLinear.from_factors(left, right, weight, bias).bias is bias


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_bits_are_those_of_the_saved_tensors(noise: str) -> None:
    layer = layer_of(noise)
    state = {key: value for key, value in layer.state_dict().items() if key != "bias"}
    if noise in PACKED:
        state["weight"] = state["weight"].bfloat16()
    bits = 8 * sum(value.numel() * value.element_size() for value in state.values())
    assert stored_bits((OUT, IN), RANK, noise, dtype=torch.float32) == bits


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
@pytest.mark.parametrize("noise", PACKED)
def test_compiles_as_one_graph(noise: str) -> None:
    torch.compiler.reset()
    layer, x = layer_of(noise), normal(4, IN).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dense().sum(0).expand(4, -1))


def test_bad_arguments_are_refused() -> None:
    weight, left, right = spiked_weight()
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 4\], got 5"):
        SpikedLinear(8, 4, 5)
    with pytest.raises(ValueError, match="pass the weight"):
        SpikedLinear.from_factors(left, right, None, None, noise="int8")
    with pytest.raises(ValueError, match="noise must be one of"):
        SpikedLinear.from_factors(left, right, weight, None, noise="int2")
    with pytest.raises(ValueError, match="disagree"):
        SpikedLinear.from_factors(left, right[:2], weight, None)


def test_repr_names_the_sizes() -> None:
    text = repr(layer_of("int4"))
    assert "in_features=50, out_features=36, rank=3, bias=True" in text
    assert "NoiseStore(int4)" in text


def test_the_cheaper_order_of_products_is_taken() -> None:
    """Merging costs rank in out, two thin products cost tokens rank (in + out)."""
    layer = layer_of("int8")
    even = IN * OUT / (IN + OUT)
    with torch.no_grad():
        assert not layer._merges(torch.zeros(int(even), IN))
        assert layer._merges(torch.zeros(int(even) + 1, IN))
    assert not layer._merges(torch.zeros(1000, IN))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("layout", [None, "int8", "dense"])
def test_inputs_that_a_dense_layer_refuses_are_refused(
    dtype: torch.dtype, layout: str | None
) -> None:
    holder = nn.Sequential(SpikedLinear(16, 12, 2), TernaryLinear(16, 12))
    if layout is not None:
        set_layout(holder, layout)
    x = torch.ones(3, 16, dtype=dtype)
    with pytest.raises(RuntimeError):
        nn.Linear(16, 12)(x)
    for layer in holder:
        with pytest.raises(TypeError, match=f"floating-point dtype, got {dtype}"):
            layer(x)
