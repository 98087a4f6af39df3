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


def norm_of(layer: Any) -> Tensor:
    return layer.weight.norm()


class Helpers:
    @staticmethod
    def norm_of(layer: Any) -> Tensor:
        return layer.weight.norm()


class Forms(Base):
    """Each method reads the weight of `a`, and no other one, in another form."""

    def norm(self, layer: Any, times: int = 1) -> Tensor:
        return layer.weight.norm() * times

    def norm_of_norm(self, layer: Any) -> Tensor:
        return self.norm(times=2, layer=layer)

    def total(self, *layers: Any) -> Any:
        return sum(layer.weight.norm() for layer in layers)

    def total_of_list(self, layers: list[Any]) -> Any:
        return sum(layer.weight.norm() for layer in layers)

    @staticmethod
    def static_norm(x: Tensor, lin: Any) -> Tensor:
        return x * lin.weight.norm()

    @classmethod
    def class_norm(cls, layer: Any) -> Tensor:
        return layer.weight.norm()

    def by_method(self, x: Tensor) -> Tensor:
        return self.a(x) / self.norm(self.a)

    def by_two_methods(self, x: Tensor) -> Tensor:
        return self.a(x) / self.norm_of_norm(self.a)

    def by_keyword(self, x: Tensor) -> Tensor:
        return self.static_norm(x, lin=self.a)

    def by_class_method(self, x: Tensor) -> Tensor:
        return x / self.class_norm(self.a)

    def by_function_of_a_class(self, x: Tensor) -> Tensor:
        return x / Helpers.norm_of(self.a)

    def by_keyword_of_a_function(self, x: Tensor) -> Tensor:
        return x / norm_of(layer=self.a)

    def by_starred_argument(self, x: Tensor) -> Tensor:
        return x / self.total(self.a)

    def by_list_argument(self, x: Tensor) -> Tensor:
        return x / self.total_of_list([self.a])

    def by_inner_function(self, x: Tensor) -> Tensor:
        def inner(layer: Any) -> Tensor:
            return layer.weight.norm()

        return x / inner(self.a)

    def by_lambda(self, x: Tensor) -> Tensor:
        inner = lambda layer: layer.weight.norm()  # noqa: E731
        return x / inner(self.a)

    def by_list(self, x: Tensor) -> Tensor:
        layers = [self.a]
        for layer in layers:
            x = x @ layer.weight
        return x

    def by_typed_list(self, x: Tensor) -> Tensor:
        layers: list[Any] = [self.a]
        return x @ layers[0].weight

    def by_dictionary(self, x: Tensor) -> Tensor:
        layers = {"a": self.a}
        return x @ layers["a"].weight

    def by_comprehension(self, x: Tensor) -> Tensor:
        layers = [layer for layer in (self.a,)]
        return x @ layers[0].weight

    def by_getattr(self, x: Tensor) -> Tensor:
        return x @ getattr(self.a, "weight")  # noqa: B009

    def by_get_submodule(self, x: Tensor) -> Tensor:
        return x @ self.get_submodule("a").weight

    def by_get_parameter(self, x: Tensor) -> Tensor:
        return x @ self.a.get_parameter("weight")

    def by_parameters(self, x: Tensor) -> Tensor:
        for weight in self.a.parameters():
            x = x * weight.norm()
        return x

    def by_sum_of_parameters(self, x: Tensor) -> Any:
        return x * sum(weight.norm() for weight in self.a.parameters())

    def by_list_of_parameters(self, x: Tensor) -> Tensor:
        return functional.linear(x, *list(self.a.parameters()))

    def by_named_parameters(self, x: Tensor) -> Tensor:
        for _, weight in self.a.named_parameters():
            x = x * weight.norm()
        return x

    def by_dictionary_of_parameters(self, x: Tensor) -> Tensor:
        return x @ dict(self.a.named_parameters())["weight"]

    def by_state_dict(self, x: Tensor) -> Tensor:
        return x @ self.a.state_dict()["weight"]


FORMS = [name for name in vars(Forms) if name.startswith("by_")]


def only(form: str) -> nn.Module:
    """A module that runs one form only."""
    return type("Form", (Base,), {"forward": vars(Forms)[form], **HELP})()


HELP = {
    name: member for name, member in vars(Forms).items() if name not in FORMS and "__" not in name
}


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


CASES = [
    (ReadsAllBelow(), {"parts.0", "parts.1"}),
    (ReadsAll(), {"a", "b", "parts.0", "parts.1", "inner.deep"}),
    (ReadsInAllModules(), {"a", "b", "parts.0", "parts.1", "inner.deep"}),
    (ReadsInChildren(), {"parts.0", "parts.1"}),
    (GoesThroughParameters(), set()),
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


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_read_is_found(form: str) -> None:
    assert weights_read(only(form)) == {"a": "forward"}


def test_conditions_count_in_a_method_that_is_called_with_a_layer() -> None:
    assert set(weights_read(GuardedInMethod(exact=True))) == {"a"}
    assert weights_read(GuardedInMethod()) == {}


def test_the_method_is_named() -> None:
    assert weights_read(ReadsInHelper()) == {"b": "mixed"}


def test_the_fast_path_of_torch_is_seen() -> None:
    found = weights_read(nn.TransformerEncoderLayer(8, 2, 16))
    assert {"linear1", "linear2"} <= set(found)


def test_code_without_a_source_gives_nothing() -> None:
    space: dict[str, Any] = {"Base": Base}
    exec("class Typed(Base):\n    def forward(self, x):\n        return x @ self.a.weight", space)
    assert weights_read(space["Typed"]()) == {}
