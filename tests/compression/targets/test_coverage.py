"""Layers left dense are listed with their reasons, and the share of the model is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_rmt.compression.model import compress
from hf_rmt.compression.summary import model_parameters
from hf_rmt.compression.targets.coverage import kept_plans
from hf_rmt.compression.targets.left_dense import left_dense
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.plan import Cause
from hf_rmt.settings import CompressionSettings

SETTINGS = CompressionSettings()


class Odd(nn.Linear):
    pass


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ParameterList([torch.randn(4, 40, 40)])
        self.gate, self.mlp = nn.Linear(40, 40), nn.Linear(40, 40)
        self.read, self.odd = nn.Linear(40, 40), Odd(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.mlp(self.gate(x))) @ self.read.weight


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block()])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


CAUSES = {
    "layers.0.gate": Cause.ROUTER,
    "layers.0.read": Cause.READ_BY_PARENT,
    "layers.0.odd": Cause.SUBCLASS,
}


def test_each_layer_left_dense_has_its_cause() -> None:
    model = Model()
    assert {name: why.cause for name, why in left_dense(model).items()} == CAUSES
    assert {plan.name: plan.cause for plan in kept_plans(model, SETTINGS)} == CAUSES
    assert compressible_layers(model, SETTINGS) == ["layers.0.mlp"]


def test_the_report_lists_them_in_the_models_order_and_says_why() -> None:
    model = Model().eval()
    before = model(torch.ones(2, 40))
    report = compress(model, SETTINGS)
    names = [name for name, part in model.named_modules() if name in dict.fromkeys(CAUSES)]
    assert [layer.name for layer in report.plan if layer.name in CAUSES] == names
    assert "Block.forward reads its weight" in str(report)
    torch.testing.assert_close(model(torch.ones(2, 40)), before, rtol=0.1, atol=0.1)


def test_a_router_is_compressed_when_it_is_named_and_a_read_weight_is_not() -> None:
    named = CompressionSettings(target_modules=["gate"])
    assert compressible_layers(Model(), named) == ["layers.0.gate"]
    with pytest.raises(ValueError, match=r"layers\.0\.read stays dense: Block\.forward reads"):
        compressible_layers(Model(), CompressionSettings(target_modules=["read"]))


def test_what_the_user_excepts_is_not_listed() -> None:
    settings = CompressionSettings(modules_to_not_convert=["read"])
    assert "layers.0.read" not in {plan.name for plan in kept_plans(Model(), settings)}


def test_a_model_of_subclasses_alone_is_refused_by_their_name() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(Odd(40, 40))])
    with pytest.raises(ValueError, match="it is a Odd, a subclass"):
        compress(model, SETTINGS)


def test_the_share_counts_experts_and_is_the_same_before_and_after() -> None:
    model: Any = Model()
    whole = sum(part.numel() for part in model.parameters())
    assert model_parameters(model) == whole
    report = compress(model, SETTINGS)
    assert model_parameters(model) == whole
    assert report.covered == 40 * 40 / whole


def test_tied_layers_that_a_user_named_are_listed_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 40))
    model[2].weight = model[0].weight
    settings = CompressionSettings(target_modules=["0", "2", "3"])
    report = compress(model, settings)
    causes = {layer.name: layer.cause for layer in report.plan}
    assert causes == {"0": Cause.TIED, "2": Cause.TIED, "3": Cause.NONE}
    assert "its weight is tied to another layer" in report.summary()


def test_a_model_of_parametrized_layers_says_what_to_remove() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(40, 40)), norm(nn.Linear(40, 40)))
    with pytest.raises(ValueError, match=r"remove_parametrizations first$"):
        compress(model, CompressionSettings(target_modules="all-linear"))


def test_a_parametrized_layer_that_is_named_says_what_to_remove() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="asks for '0', but its weight is parametrized; call"):
        compress(model, CompressionSettings(target_modules=["0"]))


def test_every_reason_is_given_if_no_layer_is_left() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(48, 4, 80, batch_first=True), 2, enable_nested_tensor=False
    )
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        compress(model, CompressionSettings())
    for words in (r"out_proj stay dense: it is a Non", "linear2 stays dense: TransformerEncoder"):
        assert words in str(refusal.value)


def test_an_ending_that_is_no_list_is_told_from_a_wrong_name() -> None:
    with pytest.raises(ValueError, match=r"'read' is a regular .* pass a list .*: \['read'\]"):
        compressible_layers(Model(), CompressionSettings(target_modules="read"))
