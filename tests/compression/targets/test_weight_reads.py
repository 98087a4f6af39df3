"""Weights that code reads, found in the code; each case says what a naive reader would find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_rmt.compression.targets.weight_reads import weights_read


class Base(nn.Module):
    def __init__(self, *, exact: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.inner = nn.ModuleDict({"deep": nn.Linear(4, 4)})
        self.exact = exact
        nn.init.zeros_(self.a.weight)  # setting up is no reading

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Calls(Base):
    pass


class Reads(Base):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.a.weight) + self.b.bias


class ReadsDeep(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.deep.weight


class ReadsByVariable(Base):
    def forward(self, x: Tensor) -> Tensor:
        layer = self.a
        return x @ layer.weight.T


class ReadsInLoop(Base):
    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x @ part.weight
        return x


class ReadsByIndex(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.parts[0].weight


class ReadsInNumberedLoop(Base):
    def forward(self, x: Tensor) -> Tensor:
        for _, part in enumerate(self.parts):
            x = x @ part.weight
        return x


class ReadsInPairs(Base):
    def forward(self, x: Tensor) -> Tensor:
        for part, _ in zip(self.parts, (1, 2), strict=True):
            x = x @ part.weight
        return x


class ReadsInLoopOverATuple(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * sum(part.weight.norm() for part in (self.a, self.b))


class ReadsInDictionary(Base):
    def forward(self, x: Tensor) -> Tensor:
        weights = {name: part.weight for name, part in self.inner.items()}
        return x @ weights["deep"]


class ReadsByTwoVariables(Base):
    def forward(self, x: Tensor) -> Tensor:
        _, second = self.a, self.b
        return x @ second.weight


class ReadsByWalrus(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ layer.weight if (layer := self.a) else x


class ReadsByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ getattr(self, "b").weight  # noqa: B009


class ReadsByAnyName(Base):
    def forward(self, x: Tensor, name: str = "b") -> Tensor:
        return x @ getattr(self, name).weight


class ReadsInProperty(Base):
    @property
    def matrix(self) -> Tensor:
        return self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def multiplied(x: Tensor, layer: Any, times: int = 1) -> Tensor:
    return multiplied(x, layer, times - 1) if times else x @ layer.weight


class ReadsInFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        return multiplied(x, self.b)


class CallsItselfOtherwise(Base):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return x @ this.a.weight


class CallsInLoops(Base):
    def forward(self, x: Tensor) -> Tensor:
        for _, part in enumerate(self.parts):
            x = part(x)
        return x + sum(part(x) for part in (self.a, self.b))


class ReadsInHelper(Base):
    def mixed(self, x: Tensor) -> Tensor:
        return x @ self.b.weight


class Inherits(Reads):
    pass


class Overrides(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class Extends(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class AsksForTheDtype(Base):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.a.weight, torch.Tensor) and x.dtype != self.a.weight.dtype:
            x = x.to(self.b.weight.device)
        return self.a(x)


class AsksForTheShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)[: self.a.weight.shape[0]]


class Guarded(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.exact and x.dim() > 1:
            return x @ self.a.weight
        elif not self.exact:
            return self.a(x)
        return x @ self.b.weight if self.training else self.b(x)


CASES = [
    (Calls(), set()),
    (Reads(), {"a"}),
    (ReadsDeep(), {"inner.deep"}),
    (ReadsByVariable(), {"a"}),
    (ReadsInLoop(), {"parts.0", "parts.1"}),
    (ReadsByIndex(), {"parts.0", "parts.1"}),
    (ReadsInNumberedLoop(), {"parts.0", "parts.1"}),
    (ReadsInPairs(), {"parts.0", "parts.1"}),
    (ReadsInLoopOverATuple(), {"a", "b"}),
    (ReadsInDictionary(), {"inner.deep"}),
    (ReadsByTwoVariables(), {"b"}),
    (ReadsByWalrus(), {"a"}),
    (ReadsByName(), {"b"}),
    (ReadsByAnyName(), {"a", "b"}),
    (ReadsInProperty(), {"a"}),
    (ReadsInFunction(), {"b"}),
    (CallsItselfOtherwise(), {"a"}),
    (CallsInLoops(), set()),
    (ReadsInHelper(), {"b"}),
    (Inherits(), {"a"}),
    (Overrides(), set()),
    (Extends(), {"a"}),
    (AsksForTheDtype(), set()),
    (AsksForTheShape(), {"a"}),
    (Guarded(), {"b"}),
    (Guarded(exact=True), {"a", "b"}),
]


@pytest.mark.parametrize(
    ("module", "expected"),
    CASES,
    ids=[f"{type(case).__name__}{i}" for i, (case, _) in enumerate(CASES)],
)
def test_reads_are_found(module: nn.Module, expected: set[str]) -> None:
    assert set(weights_read(module)) == expected


def test_the_method_is_named() -> None:
    assert weights_read(ReadsInHelper()) == {"b": "mixed"}


def test_the_fast_path_of_torch_is_seen() -> None:
    found = weights_read(nn.TransformerEncoderLayer(8, 2, 16))
    assert {"linear1", "linear2"} <= set(found)


def test_code_without_a_source_gives_nothing() -> None:
    space: dict[str, Any] = {"Base": Base}
    exec("class Typed(Base):\n    def forward(self, x):\n        return x @ self.a.weight", space)
    assert weights_read(space["Typed"]()) == {}
