"""Layers that carry what no compressed one can stay dense, and the report says why."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hf_rmt.compression.model import compress
from hf_rmt.nn import SpikedLinear
from hf_rmt.plan import Cause
from hf_rmt.settings import CompressionSettings
from tests.nn.unmovable import UNMOVABLE, patch_forward

SVD = CompressionSettings(method="svd", rank=4, noise="keep", target_modules=["0", "1"])
OTHERWISE = {
    "pruned weight": Cause.MADE_ANEW,
    "pruned bias": Cause.MADE_ANEW,
}


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48))


@pytest.mark.parametrize("way", UNMOVABLE)
def test_a_layer_that_carries_more_stays_dense_with_the_reason(way: str) -> None:
    change, words = UNMOVABLE[way]
    model = pair()
    change(model[0])
    layer, x = model[0], torch.randn(3, 48)
    before = model(x)
    every = SVD.replace(target_modules="all-linear")
    report = compress(model, every)
    assert model[0] is layer
    assert isinstance(model[1], SpikedLinear)
    plan = report.plan.layers[0]
    assert plan.cause is OTHERWISE.get(way, Cause.CARRIES)
    assert plan.cause is not Cause.CARRIES or words in plan.reason
    torch.testing.assert_close(model(x), before)


def test_a_layer_that_is_named_stays_dense_all_the_same_and_alone_is_refused() -> None:
    model: Any = pair()
    patch_forward(model[0])
    assert compress(model, SVD).plan.layers[0].cause is Cause.CARRIES
    model = pair()
    patch_forward(model[0])
    with pytest.raises(ValueError, match="0 stays dense: its method 'forward' was replaced"):
        compress(model, SVD.replace(target_modules=["0"]))


class Block(nn.Module):
    """Computes with `q` and `o`; an attribute holds what forward uses."""

    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(48, 48), nn.Linear(48, 48)
        self.__dict__["held"] = hold(self.q)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.q(x))


REFERENCES = {
    "itself": lambda layer: layer,
    "list": lambda layer: [layer],
    "tuple": lambda layer: (layer,),
    "set": lambda layer: {layer},
    "dict": lambda layer: {"q": layer},
    "nested list": lambda layer: [[0, {"q": (layer,)}]],
    "bound method": lambda layer: layer.forward,
    "partial": lambda layer: partial(layer.forward),
    "argument of a partial": lambda layer: partial(map, layer),
    "keyword of a partial": lambda layer: partial(dict, layer=layer),
    "function": lambda layer: lambda x: layer(x),
    "default of a function": lambda layer: lambda x, f=layer: f(x),
}


@pytest.mark.parametrize("way", REFERENCES)
def test_a_layer_that_an_attribute_refers_to_stays_dense(way: str) -> None:
    model = nn.Sequential(Block(REFERENCES[way]))
    layer = model[0].q
    report = compress(model, SVD.replace(target_modules="all-linear"))
    q, o = report.plan.layers
    assert model[0].q is layer
    assert (q.cause, "Block.held refers to it too" in q.reason) == (Cause.REFERRED_TO, True)
    assert o.compressed


def test_references_to_other_modules_and_of_hooks_are_no_reason() -> None:
    model = nn.Sequential(Block(lambda layer: [nn.Linear(48, 48)]))
    block: Any = model[0]
    block.itself, block.all = [block], {"model": block}
    layer = block.q
    layer.register_forward_hook(lambda *_: layer.training and None)
    report = compress(model, SVD.replace(target_modules="all-linear"))
    assert [plan.compressed for plan in report.plan] == [True, True]
