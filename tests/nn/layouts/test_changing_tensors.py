"""Layouts compute with the tensors that a layer has in a call, whoever replaces or writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jacfwd, jvp, stack_module_state, vmap

from hf_rmt.nn import SpikedLinear, TernaryLinear
from hf_rmt.nn.layers.ternary import LAYOUTS as TERNARY_LAYOUTS
from hf_rmt.nn.layouts import LAYOUTS, set_layout
from tests.nn.layouts.layers import IN, OUT, distance, layer_of, normal

NAMES = tuple(name for name, kind in LAYOUTS.items() if not kind.by_name_only)
STORED = ("int4", "keep")
X = normal(4, IN, seed=4)
SCALES = (1.0, 2.0, 3.0)

pytestmark = [
    # torch scripts its own rules when a forward-mode derivative is first asked for
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def parameters(layer: nn.Module, scale: float = 1.0) -> dict[str, Tensor]:
    return {name: part.detach() * scale for name, part in layer.named_parameters()}


def adapters(layer: nn.Module) -> Iterator[Tensor]:
    """LoRA of PEFT on the factors: two adapters, merged, and none."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=[], target_parameters=["0.weight"], init_lora_weights=False
    )
    model: Any = get_peft_model(nn.Sequential(layer), config)
    model.add_adapter("second", config)
    model.eval()
    for _ in range(3):
        for name in ("default", "second"):
            model.set_adapter(name)
            yield model(X)
        model.merge_adapter()
        yield model(X)
        model.unmerge_adapter()
        with model.disable_adapter():
            yield model(X)
    yield model.merge_and_unload()(X)


def unloaded_at_once(layer: nn.Module) -> Iterator[Tensor]:
    """LoRA of PEFT that is merged before it ever ran."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    yield layer(X)
    config = LoraConfig(
        r=2, target_modules=[], target_parameters=["0.weight"], init_lora_weights=False
    )
    yield get_peft_model(nn.Sequential(layer), config).merge_and_unload()(X)


def other_parameters(layer: nn.Module) -> Iterator[Tensor]:
    for scale in SCALES:
        yield functional_call(layer, parameters(layer, scale), (X,))
        yield layer(X)


def compiled(layer: nn.Module) -> Iterator[Tensor]:
    torch.compiler.reset()
    call = torch.compile(lambda given: functional_call(layer, given, (X,)), backend="aot_eager")
    for scale in SCALES:
        yield call(parameters(layer, scale))
        yield layer(X)


def compiled_with_gradients(layer: nn.Module) -> Iterator[Tensor]:
    with torch.enable_grad():
        yield from compiled(layer)


def other_noise(layer: nn.Module) -> Iterator[Tensor]:
    for seed in range(3):
        other = copy.deepcopy(layer.noise)
        other.store(normal(OUT, IN, seed=seed))
        given = {f"noise.{name}": buffer for name, buffer in other.named_buffers()}
        del other
        yield functional_call(layer, given, (X,))
        yield layer(X)


def written_noise(layer: nn.Module) -> Iterator[Tensor]:
    yield layer(X)
    for seed in range(2):
        layer.noise.store(normal(OUT, IN, seed=seed))
        yield layer(X)
    for buffer in layer.noise.buffers():
        before = buffer.clone()
        buffer.zero_()
        yield layer(X)
        buffer.copy_(before)


def written_in_inference_mode(layer: nn.Module) -> Iterator[Tensor]:
    """Tensors that were made in inference mode record no writes."""
    with torch.inference_mode():
        layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
        for name, buffer in layer.noise.named_buffers():
            setattr(layer.noise, name, buffer.clone())
        for _ in range(2):
            yield layer(X).clone()
            layer.weight.mul_(2)
            yield layer(X).clone()
            layer.noise.store(normal(OUT, IN, seed=7))


def forward_mode(layer: nn.Module) -> Iterator[Tensor]:
    given = parameters(layer)
    yield jvp(lambda parts: functional_call(layer, parts, (X,)), (given,), (given,))[1]
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(part, part) for name, part in given.items()}
        yield forward_ad.unpack_dual(functional_call(layer, dual, (X,))).tangent
    yield jacfwd(lambda bias: functional_call(layer, {"bias": bias}, (X,)))(given["bias"])
    yield layer(X)


def ensemble(layer: nn.Module) -> Iterator[Tensor]:
    twin = copy.deepcopy(layer)
    for part in twin.parameters():
        part.mul_(2)
    if isinstance(twin, SpikedLinear):
        twin.noise.store(normal(OUT, IN, seed=9))
    state = stack_module_state([layer, twin])
    yield vmap(lambda *parts: functional_call(layer, parts, (X,)))(*state)
    yield vmap(lambda parts: functional_call(layer, parts, (X,)))(state[0])
    yield layer(X)


CHANGES = [adapters, unloaded_at_once, other_parameters, compiled, compiled_with_gradients]
CHANGES += [other_noise, written_noise, written_in_inference_mode, forward_mode, ensemble]


def outputs(layer: nn.Module, change: Callable[[Any], Iterator[Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        return [output.detach().clone() for output in change(layer)]


@pytest.mark.parametrize("noise", STORED)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_outputs_are_those_of_the_packed_layer(
    name: str, noise: str, change: Callable[[Any], Iterator[Tensor]]
) -> None:
    layer = layer_of(noise)
    expected = outputs(copy.deepcopy(layer), change)
    set_layout(layer, name)
    for found, wanted in zip(outputs(layer, change), expected, strict=True):
        assert distance(found, wanted) < (0.02 if name == "int8" else 1e-5)
    if change not in (forward_mode, ensemble):
        assert max(distance(wanted, expected[0]) for wanted in expected) > 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradients", [True, False])
def test_other_shapes_are_those_of_the_dense_layer(name: str, gradients: bool) -> None:
    layer = layer_of("int4")
    set_layout(layer, name)
    with torch.set_grad_enabled(gradients):
        for shape in [(2, IN - 1), (2 * IN,), ()]:
            with pytest.raises(RuntimeError, match=r"mat1|size mismatch|1D"):
                layer(torch.ones(shape))
        rows = torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged)
        assert distance(layer(rows).values(), layer(rows.values())) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_may_be_removed_while_the_layer_runs(name: str) -> None:
    class Racing(SpikedLinear):
        """A layer that loses its layout as soon as it has been read."""

        @property
        def layout_object(self) -> Any:
            return self.__dict__.pop("once", None)

        @layout_object.setter
        def layout_object(self, layout: Any) -> None:
            self.__dict__["once"] = layout

    layer = layer_of("int4")
    set_layout(layer, name)
    layout = layer.__dict__.pop("layout_object", None)
    expected = layer(X)
    layer.__class__ = Racing
    for call in (layer, lambda x: layer.layout, lambda x: layer._reset_layout()):
        layer.layout_object = layout
        found = call(X)
        assert not isinstance(found, Tensor) or distance(found, expected) < 0.02


def other_scales(layer: TernaryLinear) -> Iterator[Tensor]:
    for factor in SCALES:
        yield functional_call(layer, {"scale": layer.scale * factor}, (WIDE_X,))
        yield layer(WIDE_X)
        # The state may hold the unpacked copy, whose scale is another.
        state = {**dict(layer.named_buffers()), "scale": layer.scale * factor}
        yield functional_call(layer, state, (WIDE_X,))


def written_scale(layer: TernaryLinear) -> Iterator[Tensor]:
    for _ in range(3):
        yield layer(WIDE_X)
        layer.scale.mul_(2)


def written_scale_in_inference_mode(layer: TernaryLinear) -> Iterator[Tensor]:
    with torch.inference_mode():
        layer.scale, layer.weight = layer.scale.clone(), layer.weight.clone()
        yield from written_scale(layer)


def other_signs(layer: TernaryLinear) -> Iterator[Tensor]:
    for seed in range(3):
        other = TernaryLinear.random(*WIDE, 0.3, seed)
        yield functional_call(layer, {"weight": other.weight}, (WIDE_X,))
        del other
        yield layer(WIDE_X)


def ternary_ensemble(layer: TernaryLinear) -> Iterator[Tensor]:
    layers = [layer, TernaryLinear.random(*WIDE, 0.3, 5, layout=layer.layout)]
    for part in layers:
        part(WIDE_X)
        part.bias = None
    state = {
        name: torch.stack([part.get_buffer(name) for part in layers])
        for name in ("weight", "scale")
    }
    yield vmap(lambda buffers: functional_call(layer, buffers, (WIDE_X,)))(state)
    yield layer(WIDE_X)


WIDE = 384, 390
WIDE_X = normal(4, WIDE[0], seed=4)
"""Wide enough for the integer product."""
TERNARY_CHANGES = [other_scales, written_scale, written_scale_in_inference_mode, other_signs]
TERNARY_CHANGES += [ternary_ensemble]


@pytest.mark.parametrize("name", TERNARY_LAYOUTS)
@pytest.mark.parametrize("change", TERNARY_CHANGES)
def test_ternary_outputs_are_those_of_the_packed_layer(
    name: str, change: Callable[[Any], Iterator[Tensor]]
) -> None:
    layer = TernaryLinear.random(*WIDE, 0.3, 0)
    expected = outputs(copy.deepcopy(layer), change)
    set_layout(layer, name)
    for found, wanted in zip(outputs(layer, change), expected, strict=True):
        assert distance(found, wanted) < 1e-3


@pytest.mark.parametrize("name", TERNARY_LAYOUTS)
def test_other_shapes_are_refused_as_by_the_dense_layer(name: str) -> None:
    layer = TernaryLinear.random(*WIDE, 0.3, 0, layout=name)
    with torch.no_grad():
        for shape in [(2, WIDE[0] - 1), (2 * WIDE[0],), ()]:
            with pytest.raises(RuntimeError, match=r"mat1|size mismatch|1D"):
                layer(torch.ones(shape))
        rows = torch.nested.nested_tensor([WIDE_X, WIDE_X[:2]], layout=torch.jagged)
        assert distance(layer(rows).values(), layer(rows.values())) < 1e-3
