from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from workbench import command

import pytest
from torch import distributed

from tests.processes import RECIPES


def test_ctrl_c_is_one_line_and_exit_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        command.run(interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize("caught", [True, False])
def test_ctrl_c_ends_a_process_also_while_libraries_load(caught: bool) -> None:
    act = "run(lambda: signal.raise_signal(2))" if caught else "signal.raise_signal(2)"
    # a background job may ignore Ctrl-C
    usual = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"import signal; {usual}; from workbench.command import run; {act}"
    paths = {"PYTHONPATH": str(RECIPES)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted: finished results are kept, start again to go on"


def test_other_errors_keep_their_trace() -> None:
    script = "from workbench.command import run; run(lambda: 1 / 0)"
    paths = {"PYTHONPATH": str(RECIPES)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@dataclass
class Options:
    """Two options."""

    share: float = field(default=0.5, metadata={"help": "of all"})
    names: list[str] = field(default_factory=list, metadata={"help": "which"})


def test_help_keeps_the_lines_of_the_docstring_and_shows_defaults() -> None:
    text = "Do it.\n\n    python x.py --share 1\n"
    shown = command.dataclass_parser(Options, text).format_help()
    assert text in shown
    assert "of all (default: 0.5)" in shown
    assert "which (default" not in shown
    made = command.parser_of(text)
    made.add_argument("--steps", type=int, default=3, help="how many")
    assert "how many (default: 3)" in made.format_help()
    assert text in made.format_help()


def test_a_recipe_leaves_its_group_of_processes(tmp_path: Path) -> None:
    """Threads of the group could otherwise abort a process whose work is done."""

    def main() -> None:
        address = f"file://{tmp_path / 'store'}"
        distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)

    command.run(main)
    assert not distributed.is_initialized()
    command.run(lambda: None)
