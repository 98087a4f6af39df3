"""Weights that code reads, found in the code; each case says what a naive reader would find."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hf_rmt.compression.targets.weight_reads import weights_read
from tests.compression.targets.reading_forms import FORMS, only
from tests.compression.targets.reading_modules import (
    AsksForTheDtype,
    AsksForTheShape,
    Base,
    Calls,
    CallsInLoops,
    CallsItselfOtherwise,
    Extends,
    GoesThroughParameters,
    Guarded,
    GuardedInMethod,
    Inherits,
    Overrides,
    Reads,
    ReadsAll,
    ReadsAllBelow,
    ReadsByAnyName,
    ReadsByIndex,
    ReadsByName,
    ReadsByTwoVariables,
    ReadsByVariable,
    ReadsByWalrus,
    ReadsDeep,
    ReadsInAllModules,
    ReadsInChildren,
    ReadsInDictionary,
    ReadsInFunction,
    ReadsInHelper,
    ReadsInLoop,
    ReadsInLoopOverATuple,
    ReadsInNumberedLoop,
    ReadsInPairs,
    ReadsInProperty,
)

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
