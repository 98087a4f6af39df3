from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hf_rmt
from hf_rmt.nn import TernaryLinear
from hf_rmt.nn.layers.ternary import LAYOUTS
from hf_rmt.nn.stores.ternary_packing import ternarize
from hf_rmt.nn.ternary_product import FEW_TOKENS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDE = (400, 390)
"""Wide enough for the integer kernel."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int, inputs: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


def exact(layer: TernaryLinear, x: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.linear(x.double(), layer.dense().double(), bias)


@pytest.mark.parametrize("scale", ["row", "tensor"])
def test_weight_is_the_nearest_ternary_one_at_every_size(scale: str) -> None:
    for outputs in range(1, 10):
        for inputs in range(1, 10):
            source = linear(outputs, inputs)
            layer = TernaryLinear.from_linear(source, scale=scale)
            signs, scales = ternarize(source.weight.detach(), scale=scale)
            assert torch.equal(layer.dense(), signs * scales[:, None])
            x = normal(3, inputs)
            torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 39), (3, 40), WIDE])
@pytest.mark.parametrize("lead", [(), (2,), (3, 4), (2, 0), (2, FEW_TOKENS)])
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_is_that_of_the_dense_weight(
    dtype: torch.dtype, layout: str, shape: tuple[int, int], lead: tuple[int, ...], gradients: bool
) -> None:
    layer = TernaryLinear.from_linear(linear(*shape).to(dtype), sparsity=0.4, layout=layout)
    x = normal(*lead, shape[1], seed=1).to(dtype)
    with torch.set_grad_enabled(gradients):
        result = layer(x)
    assert result.dtype == dtype
    # Two roundings of outputs below 4; that of 240 products below 0.1 each; and that of
    # inputs below 4 to 16 bits, six sigma of a sum of 240 times a weight of 0.03.
    digits = 6 * (240 / 12) ** 0.5 * 0.03 * 4 / 2**15 if layout == "int8" else 0.0
    bound = 4 * torch.finfo(dtype).eps + 240 * 0.1 * torch.finfo().eps + digits
    torch.testing.assert_close(result.double(), exact(layer, x), rtol=0, atol=bound)


def test_many_tokens_of_the_packed_layer_are_bitwise_those_of_the_dense() -> None:
    layer = TernaryLinear.from_linear(linear(*WIDE))
    x = normal(FEW_TOKENS + 1, WIDE[1])
    with torch.no_grad():
        assert torch.equal(layer(x), layer.to_linear()(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 40), WIDE])
def test_gradients_are_those_of_the_dense_weight(layout: str, shape: tuple[int, int]) -> None:
    layer = TernaryLinear.from_linear(linear(*shape), layout=layout)
    dense = copy.deepcopy(layer).to_linear()
    x, y = (normal(4, 5, shape[1], seed=2).requires_grad_() for _ in range(2))
    weights = normal(4, 5, shape[0], seed=3)
    (layer(x) * weights).sum().backward()
    (dense(y) * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits(dtype: torch.dtype) -> None:
    layer = TernaryLinear.from_linear(linear(40, 768, bias=False).to(dtype))
    scale = 8 * dtype.itemsize / 768
    held = sum(tensor.numel() * tensor.element_size() for tensor in layer.buffers())
    assert 8 * held / (40 * 768) == pytest.approx(2 + scale, abs=1e-9)
    saved = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert 8 * saved / (40 * 768) == pytest.approx(1.6 + scale, abs=8 / (40 * 768))


def test_random_weights_have_the_moments_of_the_theory() -> None:
    layer = TernaryLinear.random(500, 400, 0.9, 7)
    weight, size = layer.dense().double(), 500 * 400
    nonzero = (weight != 0).double().mean()
    assert abs(nonzero - 0.1) < 5 * (0.09 / size) ** 0.5
    assert abs(weight.mean()) < 5 / size**0.5
    assert weight.abs().max().item() == pytest.approx(0.1**-0.5, rel=1e-6)
    assert layer.bias is None
    assert torch.equal(layer.dense(), TernaryLinear.random(500, 400, 0.9, 7).dense())
    assert not torch.equal(layer.dense(), TernaryLinear.random(500, 400, 0.9, 8).dense())
    assert (TernaryLinear.random(50, 40, 0.0, 1).dense().abs() == 1).all()


def test_to_linear_and_shared_bias() -> None:
    source = linear(3, 40).eval()
    layer = TernaryLinear.from_linear(source)
    assert layer.bias is source.bias
    dense = layer.to_linear()
    assert dense.bias is source.bias
    assert torch.equal(dense.weight, layer.dense())
    assert not layer.training
    assert not dense.training
    assert TernaryLinear.from_linear(linear(3, 4, bias=False)).to_linear().bias is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 39), WIDE])
def test_copies_are_equal(layout: str, shape: tuple[int, int]) -> None:
    layer, x = TernaryLinear.from_linear(linear(*shape), layout=layout), normal(5, shape[1])
    result = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), result)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_replaces_what_was_unpacked(assign: bool, layout: str) -> None:
    first, second = (TernaryLinear.random(41, 7, 0.5, seed, layout=layout) for seed in (0, 1))
    x = normal(5, 41)
    state, before = second.state_dict(), first(x)
    with torch.inference_mode():
        second(x)
    first.load_state_dict(state, assign=assign)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), before)
    assert torch.equal(first.state_dict()["weight"], state["weight"])


def test_state_without_the_weight_leaves_it() -> None:
    layer = TernaryLinear.random(41, 7, 0.5, 0)
    weight = layer.dense()
    layer.load_state_dict({"scale": torch.tensor([2.0])}, strict=False)
    assert torch.equal(layer.dense(), 2 * weight.sign())


def test_state_that_does_not_fit_is_refused() -> None:
    layer = TernaryLinear.from_linear(linear(3, 40))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Linear(40, 3).load_state_dict(layer.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        TernaryLinear(60, 3).load_state_dict(layer.state_dict())


RELOAD = """
import sys, torch
from safetensors.torch import load_file
from hf_rmt.nn import TernaryLinear

tensors = load_file(sys.argv[1])
with torch.device("meta"):
    layer = TernaryLinear(77, 3)
if sys.argv[2] == "load_state_dict":
    state = {key: tensors[key] for key in ("weight", "scale", "bias")}
    layer.load_state_dict(state, assign=True)
else:  # as transformers does it, tensor by tensor
    assert all(getattr(layer, name).shape == tensors[name].shape for name in layer.state_dict())
    layer.weight, layer.scale = tensors["weight"], tensors["scale"]
    layer.bias = torch.nn.Parameter(tensors["bias"])
again = layer.state_dict()
print((layer(tensors["x"]) - tensors["y"]).abs().max().item())
print(all(torch.equal(again[name], layer.state_dict()[name]) for name in again))
"""


@pytest.mark.parametrize("way", ["load_state_dict", "setattr"])
def test_round_trip_in_another_process(tmp_path: Path, way: str) -> None:
    layer, x = TernaryLinear.from_linear(linear(3, 77)), normal(9, 77)
    file = tmp_path / "layer.safetensors"
    save_file({**layer.state_dict(), "x": x, "y": layer(x).detach()}, file)
    arguments = [sys.executable, "-c", RELOAD, str(file), way]
    there = subprocess.run(arguments, capture_output=True, check=True, text=True)
    assert there.stdout.split() == ["0.0", "True"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_casts_touch_the_scales_only(layout: str) -> None:
    layer = TernaryLinear.from_linear(linear(3, 40), layout=layout)
    signs, x = layer.dense().sign(), normal(5, 40)
    layer(x)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.weight.dtype == torch.int8
    assert half.scale.dtype == torch.bfloat16
    assert torch.equal(half.dense().sign().float(), signs)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_layout_may_change_and_unpacks_once() -> None:
    layer, x = TernaryLinear.from_linear(linear(*WIDE)), normal(5, WIDE[1])
    assert layer.unpacked is None
    packed = layer(x)
    layer.layout = "int8"
    fast = layer(x)
    assert layer.unpacked.dtype in (torch.int8, torch.float32)
    assert "unpacked" not in layer.state_dict()
    kept = layer.unpacked
    layer(x)
    assert layer.unpacked is kept
    layer.layout = "packed"
    assert layer.unpacked is None
    assert torch.equal(layer(x), packed)
    torch.testing.assert_close(fast, packed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 40), WIDE])
def test_compiled(layout: str, shape: tuple[int, int]) -> None:
    layer = TernaryLinear.from_linear(linear(*shape), layout=layout)
    x, y = (normal(100, shape[1]).requires_grad_() for _ in range(2))
    expected = exact(layer, x)
    result = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    result.square().sum().backward()
    expected = exact(layer, y)
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradients", [True, False])
def test_autocast_is_that_of_the_dense_layer(layout: str, gradients: bool) -> None:
    layer, x = TernaryLinear.from_linear(linear(3, 40), layout=layout), normal(5, 40)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
        result, expected = layer(x), layer.to_linear()(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.01)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="scale must be one of row, tensor, got 'group'"):
        TernaryLinear(4, 2, scale="group")
    with pytest.raises(ValueError, match="layout must be one of packed, int8, dense, got 'int4'"):
        TernaryLinear(4, 2, layout="int4")
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\), got 1.0"):
        TernaryLinear.random(4, 2, 1.0, 0)


def no_inputs() -> nn.Linear:
    layer = nn.Linear(1, 3)
    layer.in_features, layer.weight = 0, nn.Parameter(torch.empty(3, 0))
    return layer


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TernaryLinear(-1, 3), ValueError, "in_features must be at least 0, got -1"),
        (lambda: TernaryLinear(3, 2.5), TypeError, "out_features must be an integer .* got 2.5"),
        (lambda: TernaryLinear.random(4, 3, "a", 0), TypeError, "sparsity must be a number"),
        (lambda: TernaryLinear.from_linear(nn.Conv2d(3, 8, 3)), TypeError, "takes an nn.Linear"),
        (lambda: TernaryLinear.from_linear(no_inputs()), ValueError, r"got shape \(3, 0\)"),
        (lambda: TernaryLinear.from_linear(None), TypeError, "takes an nn.Linear, got None"),
    ],
)
def test_what_is_no_layer_is_refused(make: Callable[[], object], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_repr_and_export() -> None:
    text = repr(TernaryLinear.random(4, 2, 0.5, 0))
    assert "in_features=4, out_features=2, bias=False, scale='tensor', layout='packed'" in text
    assert hf_rmt.TernaryLinear is TernaryLinear
