"""`search` and `filter_update` on two processes against one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_rmt import compress, filter_update, search
from tests.huggingface.models import tiny_model
from tests.huggingface.search import search_worker
from tests.processes import succeed


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Tensors and texts of two processes that ran the worker."""
    folder = tmp_path_factory.mktemp("processes")
    succeed(search_worker.__file__, folder, processes=2)
    tensors = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    return tensors, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_processes_find_what_one_finds(processes: tuple[list[Any], list[Any]]) -> None:
    _, texts = processes
    options = {"tolerance": 0.001, "fractions": search_worker.GRID}
    alone = search(tiny_model("bert"), search_worker.evaluate, **options)
    assert 0 < len(alone.removal) < len(alone.layers)
    assert [text["result"] for text in texts] == [json.loads(alone.to_json())] * 2


def test_both_processes_end_with_the_weights_of_one(processes: tuple[list[Any], list[Any]]) -> None:
    tensors, _ = processes
    tuned, base = search_worker.tuned_and_base()
    filter_update(base, tuned)
    alone = search(
        tiny_model("bert"), search_worker.evaluate, tolerance=0.001, fractions=search_worker.GRID
    )
    found = tiny_model("bert")
    compress(found, alone.config)
    expected = {f"tuned.{key}": value for key, value in tuned.state_dict().items()}
    expected |= {f"found.{key}": value for key, value in found.state_dict().items()}
    for own in tensors:
        assert set(own) == set(expected)
        assert all(torch.equal(own[key], expected[key]) for key in expected)


def test_the_first_process_alone_writes_the_file(processes: tuple[list[Any], list[Any]]) -> None:
    assert [text["file"] for text in processes[1]] == [True, False]


def test_a_metric_that_fails_on_one_process_fails_on_all(
    processes: tuple[list[Any], list[Any]],
) -> None:
    for text in processes[1]:
        told = "process 1 failed while it ran evaluate: ValueError: the metric is haunted"
        assert text["heard"] == told
