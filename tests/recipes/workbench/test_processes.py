from __future__ import annotations

from types import SimpleNamespace

from workbench import processes

import pytest


def test_a_library_that_sees_fewer_processes_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.check_processes(accelerate=2, trainer=2)
    with pytest.raises(
        SystemExit, match=r"started 2 processes, but trainer works with 1.*--use_cpu"
    ):
        processes.check_processes(accelerate=2, trainer=1)
    monkeypatch.delenv("WORLD_SIZE")
    processes.check_processes(accelerate=1)


def test_without_an_accelerator_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(processes.torch.accelerator, "is_available", lambda: False)
    arguments = SimpleNamespace(use_cpu=False)
    processes.begin(arguments)
    assert arguments.use_cpu


def test_a_batch_is_shared_out_evenly_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=3))
    assert processes.share_of(12) == 4
    with pytest.raises(SystemExit, match="multiple of them, got 10; pass 30"):
        processes.share_of(10)


def test_a_recipe_for_one_process_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.one_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="works in one process, got 2; start it with `python`"):
        processes.one_process()
