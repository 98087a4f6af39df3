"""A few inputs times packed noise by compiled code: the product with the unpacked weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hf_rmt.nn import NoiseStore, SpikedConv2d, SpikedLinear
from hf_rmt.nn.stores import jit_product, machine_code, noise_store
from hf_rmt.nn.stores.codebooks import CODEBOOKS
from tests.nn.stores.filled import filled, gaussian

pytest.importorskip("numba", reason="needs the extra `fast`")
SHAPES = [(1, 1), (2, 7), (37, 53), (128, 640), (300, 1000)]
FEW, TOGETHER = jit_product.FEW[torch.float32], jit_product.TOGETHER
LENIENT = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def difference(result: torch.Tensor, store: NoiseStore, x: torch.Tensor) -> float:
    """Relative to the exact product."""
    wanted = x.double() @ store.dense(torch.float64).T
    return float((result - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inputs", [1, TOGETHER - 1, TOGETHER, TOGETHER + 1, FEW])
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_is_the_product_with_the_unpacked_weight(kind, inputs, shape):
    store, x = filled(kind, gaussian(*shape)), gaussian(inputs, shape[1], seed=1)
    for dtype, least in LENIENT.items():
        if inputs > jit_product.FEW[dtype]:
            assert store.product(x.to(dtype)) is None
            continue
        result = store.product(x.to(dtype))
        assert result.dtype == dtype
        assert difference(result, store, x.to(dtype)) < least


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_any_leading_sides_and_strides_do(kind):
    store, x = filled(kind, gaussian(24, 56)), gaussian(56, 2, 3, seed=1).permute(1, 2, 0)
    assert torch.equal(store.product(x), store.product(x.reshape(6, 56)).view(2, 3, 24))
    assert torch.equal(store.product(x[0, 0]), store.product(x[0, 0][None])[0])


def test_threads_share_the_rows(monkeypatch):
    store, x = filled("int4", gaussian(600, 1000)), gaussian(3, 1000, seed=1)
    before, pool, asked = torch.get_num_threads(), machine_code.pool, []

    def seen(process: int):
        asked.append(process)
        return pool(process)

    monkeypatch.setattr(machine_code, "pool", seen)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(store.product(x))
            assert len(asked) == threads - 1
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_what_is_not_a_number_stays_so():
    store, x = filled("int8", gaussian(8, 64)), gaussian(3, 64)
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    result = store.product(x)
    assert result[0].isnan().all()
    assert not result[1].isfinite().any()
    assert result[2].isfinite().all()


REFUSED = {
    "many": lambda: gaussian(FEW + 1, 64),
    "none": lambda: gaussian(0, 64),
    "double": lambda: gaussian(2, 64).double(),
    "integers": lambda: torch.ones(2, 64, dtype=torch.int64),
    "meta": lambda: torch.empty(2, 64, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([gaussian(1, 64), gaussian(2, 64)]),
    "another width": lambda: gaussian(2, 32),
    "a single number": lambda: torch.tensor(1.0),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("made", REFUSED.values(), ids=REFUSED)
def test_other_inputs_are_left_to_torch(made):
    assert filled("int8", gaussian(8, 64)).product(made()) is None


@pytest.mark.parametrize("kind", ["keep", "drop"])
def test_noise_without_codes_is_left_to_torch(kind):
    assert filled(kind, gaussian(8, 64)).product(gaussian(2, 64)) is None


def test_without_numba_torch_multiplies(monkeypatch):
    store = filled("int8", gaussian(8, 64))
    monkeypatch.setattr(machine_code, "numba", lambda: None)
    assert store.product(gaussian(2, 64)) is None


def test_a_few_inputs_need_no_memory_for_the_weight(monkeypatch):
    def unpacks(*_: object) -> None:
        raise AssertionError("a weight was unpacked")

    layer = spiked(nn.Linear(256, 256))
    monkeypatch.setattr(noise_store, "scratch_memory", unpacks)
    with torch.no_grad():
        assert layer(gaussian(FEW, 256)).shape == (FEW, 256)
        with pytest.raises(AssertionError):
            layer(gaussian(FEW + 1, 256))


def spiked(dense: nn.Module, noise: str = "int8") -> SpikedLinear:
    weight = dense.weight.detach()
    factors = gaussian(weight.shape[0], 2), gaussian(2, weight[0].numel(), seed=1)
    geometry = {"kernel_size": dense.kernel_size} if isinstance(dense, nn.Conv2d) else {}
    kind = SpikedConv2d if geometry else SpikedLinear
    matrix, bias = weight.flatten(1), dense.bias.detach()
    return kind.from_factors(*factors, matrix, bias, noise=noise, **geometry)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("noise", CODEBOOKS)
def test_a_layer_acts_as_its_dense_weight_with_all_derivatives(noise, grad):
    layer, x = spiked(nn.Linear(96, 64), noise), gaussian(5, 96, seed=2).requires_grad_(grad)
    dense = layer.to_dense()
    with torch.set_grad_enabled(grad):
        result, wanted = layer(x), dense(x)
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
    if grad:
        slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (result, wanted)]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-2)
        pushed = [torch.func.jvp(one, (x,), (x,))[1] for one in (layer, dense)]
        torch.testing.assert_close(*pushed, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(torch.vmap(layer)(x), wanted, rtol=1e-4, atol=1e-4)


def test_images_are_convolved_although_they_are_as_wide_as_a_matrix():
    layer = spiked(nn.Conv2d(8, 4, 1))
    images = gaussian(1, 8, 2, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(images), layer.to_dense()(images), rtol=1e-4, atol=1e-4)


def test_modes_that_trace_see_an_operator():
    layer, x = spiked(nn.Linear(96, 64)), gaussian(2, 3, 96)
    with torch.no_grad():
        graph = make_fx(layer)(x)
        assert "noise_product" in graph.code
        layer.noise.codes.fill_(100)
        assert torch.equal(graph(x), layer(x))
    with torch.inference_mode():
        assert layer(x).shape == (2, 3, 64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(2, 3, 96)).shape == (2, 3, 64)
