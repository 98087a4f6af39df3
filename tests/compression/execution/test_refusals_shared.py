"""One of two processes has a bad argument, or another one: both are told, and none waits."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from tests.compression.execution import refusals_worker
from tests.compression.execution.refusals_worker import BAD, BAD_CALIBRATIONS, CALLS, OTHER, OWN
from tests.processes import succeed

PARAMETERS = [
    (name, parameter)
    for name, (call, _) in CALLS.items()
    for parameter in inspect.signature(call).parameters
]
DIFFERENT = {"calibration": "calibration", "model": "the weights", "tuned": "the weights"}
DIFFERENT |= {"base": "the weights of base", "config": "max_rank"}
"""How messages call what differs, where it is not the argument's name."""


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of two processes heard, by the name of the case."""
    folder = tmp_path_factory.mktemp("processes")
    succeed(refusals_worker.__file__, folder, processes=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_a_bad_argument_on_one_process_is_an_error_on_all(
    heard: Any, name: str, parameter: str
) -> None:
    assert parameter in BAD or parameter == "calibration"
    kinds = [f"bad: {kind}" for kind in BAD_CALIBRATIONS] if parameter == "calibration" else ["bad"]
    for kind in kinds:
        texts = [text[f"{name} | {parameter} | {kind}"] for text in heard]
        assert texts[0] == texts[1]
        assert texts[0].startswith(
            ("RuntimeError: process 1 failed", "RuntimeError: the processes")
        )


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_arguments_that_change_the_work_must_be_the_same(
    heard: Any, name: str, parameter: str
) -> None:
    assert (parameter in OTHER) != (parameter in OWN)
    if parameter in OTHER:
        texts = [text[f"{name} | {parameter} | other"] for text in heard]
        assert texts[0] == texts[1]
        different = DIFFERENT.get(parameter, parameter)
        assert texts[0].startswith(f"RuntimeError: the processes differ in {different} (process 0:")
        assert texts[0].count("process 0:") == 1  # nothing that is the same is shown


@pytest.mark.parametrize("argument", ["schedule", "method"])
def test_callbacks_that_differ_are_refused(heard: Any, argument: str) -> None:
    for text in heard:
        told = text[f"RMTCallback | {argument}"]
        assert told.startswith("RuntimeError: the processes differ in ")
        assert f"{argument} (process 0:" in told


def test_a_process_that_fails_between_tensors_is_heard(heard: Any) -> None:
    for text in heard:
        expected = "process 1 failed while it ran fails_between_tensors: ValueError: no room"
        assert expected in text["between tensors"]


def test_an_error_that_all_processes_have_is_raised_as_it_is(heard: Any) -> None:
    assert [text["the same on both"] for text in heard] == [
        "ValueError: size must lie in (0, 1], got 2"
    ] * 2
