"""Modules whose code reads weights, or seems to."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class ReadsAllBelow(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * sum(weight.norm() for weight in self.parts.parameters())


class ReadsAll(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * sum(weight.norm() for weight in self.parameters())


class ReadsInAllModules(Base):
    def forward(self, x: Tensor) -> Tensor:
        for part in self.modules():
            x = x @ part.weight if isinstance(part, nn.Linear) else x
        return x


class ReadsInChildren(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * sum(part.weight.norm() for _, part in self.parts.named_children())


class GoesThroughParameters(Base):
    """Freezes, counts types, saves: none of it uses the value of a weight in a forward pass."""

    def freeze(self) -> None:
        for weight in self.a.parameters():
            weight.requires_grad = False
        for name, weight in self.b.named_parameters():
            weight.requires_grad_("bias" in name)

    def save(self) -> Any:
        for part in self.modules():
            part.state_dict()
        return self.state_dict()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.a.parameters()).dtype).to(next(self.parameters()).device)
        if any(weight.requires_grad for weight in self.b.parameters()):
            x = self.scaled(x, self.b)
        for weight in chain(self.a.parameters(), self.b.buffers()):  # as in nn.DataParallel
            if weight.device != x.device:
                raise RuntimeError
        return self.scaled(x, layer=self.a)

    def scaled(self, x: Tensor, layer: Any) -> Tensor:
        return layer(x)


class GuardedInMethod(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.a)

    def run(self, x: Tensor, layer: Any) -> Tensor:
        return self.twice(x, layer)

    def twice(self, x: Tensor, layer: Any) -> Tensor:
        if self.exact:
            return x @ layer.weight
        return layer(x)
