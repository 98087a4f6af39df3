from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hf_rmt import staging
from hf_rmt.staging import staged


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["exchanged", "moved"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "moved":
        monkeypatch.setattr(staging, "_can_be_exchanged", lambda target: False)
    return request.param


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_files_are_in_place_at_the_end_and_others_stay(tmp_path: Path, way: str) -> None:
    target = tmp_path / "model"
    target.mkdir()
    write(target, config="old", mine="kept", shard="stale")
    with staged(target, stale=lambda name: name == "shard") as aside:
        write(aside, config="new", weights="new")
        assert contents(target) == {"config": "old", "mine": "kept", "shard": "stale"}
    assert contents(target) == {"config": "new", "weights": "new", "mine": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_what_was_there(tmp_path: Path, way: str) -> None:
    target = tmp_path / "model"
    target.mkdir()
    write(target, config="old")
    with pytest.raises(TypeError), staged(target) as aside:
        write(aside, config="new", weights=3)  # type: ignore[arg-type]
    assert contents(target) == {"config": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), staged(tmp_path / "a" / "b" / "model"):
        raise OSError("the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with staged(tmp_path / "a" / "model") as aside:
        write(aside, config="new")
    assert contents(tmp_path / "a" / "model") == {"config": "new"}


def test_a_folder_with_folders_in_it_is_written_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "model" / "runs").mkdir(parents=True)
    write(tmp_path / "model" / "runs", log="kept")
    with staged(tmp_path / "model") as aside:
        write(aside, config="new")
        (aside / "1_Pooling").mkdir()
        write(aside / "1_Pooling", config="new")
    assert contents(tmp_path / "model" / "runs") == {"log": "kept"}
    assert contents(tmp_path / "model" / "1_Pooling") == {"config": "new"}


def test_records_are_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved, replace = [], Path.replace
    monkeypatch.setattr(staging, "_can_be_exchanged", lambda target: False)
    monkeypatch.setattr(Path, "replace", lambda s, t: (moved.append(s.name), replace(s, t))[1])
    write(tmp_path, old="old")
    with staged(tmp_path) as aside:
        for name in ("config.json", "model.safetensors", "README.md", "zz.py"):
            write(aside, **{name: "new"})
    assert moved[-1] == "config.json"


def test_what_another_process_writes_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, exchange = tmp_path / "model", staging._exchange
    target.mkdir()
    write(target, config="old")

    def late(one: Path, other: Path) -> None:
        write(target, rng_state="of another process")
        exchange(one, other)

    monkeypatch.setattr(staging, "_exchange", late)
    with staged(target) as aside:
        write(aside, config="new")
    assert contents(target) == {"config": "new", "rng_state": "of another process"}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with staged(tmp_path / "model") as aside:
        name = aside.name.replace(f"-{os.getpid()}-", f"-{child}-")
        write(aside, config="new")
    (tmp_path / name).mkdir()
    with staged(tmp_path / "model") as aside:
        write(aside, config="newer")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_another_machine_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-2")
    with staged(tmp_path / "model") as first:
        monkeypatch.setattr(socket, "gethostname", lambda: "node")
        monkeypatch.setattr(staging, "_is_alive", lambda process: False)
        with staged(tmp_path / "model") as second:
            write(second, config="second")
        write(first, config="first")
    assert contents(tmp_path / "model")["config"] == "first"


def test_two_saves_to_a_name_with_brackets_have_folders_of_their_own(tmp_path: Path) -> None:
    with staged(tmp_path / "model[1]") as first, staged(tmp_path / "model[1]") as second:
        assert first != second


def test_a_file_of_that_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, model="precious")
    with pytest.raises(NotADirectoryError, match="got the file"), staged(tmp_path / "model"):
        pass
    assert contents(tmp_path) == {"model": "precious"}


def test_the_folder_in_which_a_process_works_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, config="old")
    with staged(".") as aside:
        write(aside, config="new")
    assert Path("config").read_text() == "new"
