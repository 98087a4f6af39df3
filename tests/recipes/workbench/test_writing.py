from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from workbench import writing

import pytest
import torch

from tests.processes import RECIPES


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_take_the_place_of_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    for number in (1, 2):
        writing.write_json(file, {"number": number})
        assert json.loads(file.read_text()) == {"number": number}
    writing.write_text(tmp_path / "new" / "b.md", "text\n\n")
    assert (tmp_path / "new" / "b.md").read_bytes() == b"text\n"
    writing.write_tensors(tmp_path / "new" / "c.pt", {"x": torch.ones(2)})
    assert torch.load(tmp_path / "new" / "c.pt")["x"].sum() == 2
    assert names(tmp_path / "new") == {"a.json", "b.md", "c.pt"}


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    writing.write_text(tmp_path / "a.md", "old")

    def interrupted() -> None:
        with writing.replaced(tmp_path / "a.md") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.md").read_text() == "old\n"
    assert names(tmp_path) == {"a.md"}


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with writing.replaced_folder(target) as part:
        (part / "weights").write_text("old")

    def failing() -> None:
        with writing.replaced_folder(target) as part:
            (part / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert (target / "weights").read_text() == "old"
    with writing.replaced_folder(target) as part:
        (part / "other").write_text("new")
    assert names(target) == {"other"}
    assert names(tmp_path) == {"best"}


def test_a_process_that_does_not_write_leaves_folders_alone(tmp_path: Path) -> None:
    with writing.replaced_folder(tmp_path / "best", keep=False) as part:
        assert not part.exists()
    with writing.replaced_folder(tmp_path / "best") as other:
        assert other == part


def test_files_move_into_a_folder_and_leave_the_others(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    (target / "weights").write_text("old")

    def failing() -> None:
        with writing.replaced_files(target) as part:
            (part / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert (target / "weights").read_text() == "old"
    with writing.replaced_files(target) as part:
        (part / "weights").write_text("new")
        (part / "config.json").write_text("{}")
    assert (target / "weights").read_text() == "new"
    assert names(target) == {"thesis.tex", "weights", "config.json"}
    assert names(tmp_path) == {"mine"}


KILLED = """
import signal, sys, time
from pathlib import Path
from workbench.writing import replaced, replaced_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore it
target = Path(sys.argv[1])
with replaced(target / "file") as file, replaced_folder(target / "folder") as folder:
    file.write_text("half")
    (folder / "weights").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_what_was_there(tmp_path: Path, kind: signal.Signals) -> None:
    writing.write_text(tmp_path / "file", "old")
    with writing.replaced_folder(tmp_path / "folder") as part:
        (part / "weights").write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    paths = f"{RECIPES}:{RECIPES.parent}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env={"PYTHONPATH": paths}, **options) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(kind)
    assert (tmp_path / "file").read_text() == "old\n"
    assert (tmp_path / "folder" / "weights").read_text() == "old"
    with writing.replaced_folder(tmp_path / "folder") as part:  # what was left is cleared away
        assert not any(part.iterdir())


def test_a_folder_caught_between_two_renames_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "weights").write_text("old")
    with pytest.raises(RuntimeError), writing.replaced_folder(tmp_path / "best"):
        raise RuntimeError
    assert (tmp_path / "best" / "weights").read_text() == "old"
