"""Whole models as ONNX in onnxruntime and as `torch.export` graphs, at other sizes of inputs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_rmt import RMTConfig, compress
from hf_rmt.settings import NOISE_KINDS
from tests.huggingface.models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = ("bert", "t5", "vit")
Graph = Callable[[Tensor], Tensor]


class Encoder(nn.Module):
    """The model as a function of one tensor."""

    def __init__(self, family: str, noise: str) -> None:
        super().__init__()
        model: Any = tiny_model(family)
        self.model = model.get_encoder() if family == "t5" else model
        self.model.set_attn_implementation("eager")  # torch.onnx trips over a dense T5 otherwise
        compress(self.model, RMTConfig(noise=noise))
        self.pictures = family == "vit"

    def forward(self, x: Tensor) -> Tensor:
        key = "pixel_values" if self.pictures else "input_ids"
        return self.model(**{key: x}).last_hidden_state


def inputs(family: str, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if family == "vit":
        return torch.randn(batch, 3, 32, 32, generator=generator)
    return torch.randint(3, 50, (batch, length), generator=generator)


def dynamic(family: str) -> tuple[dict[int, Any]]:
    sizes = {0: torch.export.Dim("batch")}
    return (sizes if family == "vit" else {**sizes, 1: torch.export.Dim("length", max=512)},)


def exported(model: nn.Module, family: str) -> Graph:
    with torch.no_grad():
        shapes = dynamic(family)
        program = torch.export.export(model, (inputs(family, 2, 5),), dynamic_shapes=shapes)
    return program.module()


def onnx(model: nn.Module, family: str) -> Graph:
    runtime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program: Any = torch.onnx.export(
        model, (inputs(family, 2, 5),), dynamo=True, dynamic_shapes=dynamic(family), verbose=False
    )
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize("noise", NOISE_KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [exported, onnx])
def test_a_graph_gives_the_outputs_of_the_model(
    way: Callable[[nn.Module, str], Graph], family: str, noise: str
) -> None:
    model = Encoder(family, noise).eval()
    graph = way(model, family)
    for batch, length in ((2, 5), (3, 9), (40, 12)):
        x = inputs(family, batch, length)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-4)
