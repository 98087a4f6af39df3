"""Every form in which a module may read a weight, one method for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tests.compression.targets.reading_modules import Base


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
