"""Exported graphs: ONNX in onnxruntime, torch.export and traces give what the layers give."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_rmt.nn import SpikedLinear, TernaryLinear
from hf_rmt.nn.layers.spiked_conv import SpikedConv2d
from hf_rmt.nn.layers.step_activation import StepActivation
from hf_rmt.nn.stores.export_ops import plain_signs
from hf_rmt.nn.stores.noise_store import NoiseStore
from hf_rmt.settings import NOISE_KINDS

PACKED = ("int8", "int4", "ternary")
KINDS = [*NOISE_KINDS, "signs", "used signs"]
pytestmark = pytest.mark.filterwarnings("ignore")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(kind: str, rank: int = 3) -> nn.Module:
    if "signs" in kind:
        made = TernaryLinear.from_linear(nn.Linear(40, 24))
        if kind == "signs":  # as it lies on disk, and as it is after the first use
            made.load_state_dict(made.state_dict())
        return made
    return SpikedLinear.from_factors(
        draw(24, rank), draw(rank, 40, seed=1), draw(24, 40, seed=2), draw(24), noise=kind
    )


class Body(nn.Module):
    """A block with a step activation, two layers and a rank of zero."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = layer(kind), nn.Linear(24, 40)
        self.step, self.third = StepActivation([-1.0, 1.0], [2.0, 0.0, 2.0]), layer(kind, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.step(self.first(x))))


def exported(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch, 1: length},))
    return program.module()


def traced(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        return torch.jit.trace(model, x)


def onnx(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    runtime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = io.BytesIO()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    program: Any = torch.onnx.export(
        model, (x,), dynamo=True, dynamic_shapes=({0: batch, 1: length},), verbose=False
    )
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [exported, traced, onnx])
def test_a_graph_gives_what_the_layers_give_at_every_batch_and_length(
    way: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]], kind: str
) -> None:
    model = Body(kind).eval()
    graph = way(model, draw(2, 5, 40))
    for batch, length in ((2, 5), (1, 3), (7, 11), (33, 40)):
        x = draw(batch, length, 40, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_convolution_is_exported(kind: str) -> None:
    sizes: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    made = SpikedConv2d.from_factors(
        draw(8, 2), draw(2, 36), draw(8, 36, seed=1), None, noise=kind, **sizes
    )
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},)
        graph = torch.export.export(made, (draw(2, 4, 9, 9),), dynamic_shapes=shapes).module()
        x = draw(5, 4, 9, 9, seed=3)
        torch.testing.assert_close(graph(x), made(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("size", [1.0, 1e-20, 3e15])
def test_plain_noise_is_the_noise(kind: str, size: float) -> None:
    store = NoiseStore(kind, 13, 37)
    store.store(size * draw(13, 37))
    assert torch.equal(store.plain(torch.float32), store.dense())


def test_plain_signs_are_the_signs_on_disk_and_after_use() -> None:
    made = TernaryLinear.from_linear(nn.Linear(7, 9))
    signs = made.dense() / made.scale[:, None]
    shape = 9, 7
    torch.testing.assert_close(plain_signs(made.weight, shape), signs)
    torch.testing.assert_close(plain_signs(made.state_dict()["weight"], shape), signs)
