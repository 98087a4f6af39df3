"""A sample of the fuzzers, which `python -m tests.fuzz.mutate` and `.kill` run at length."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["tests.fuzz.mutate", "--cases", "40"],
        pytest.param(
            ["tests.fuzz.kill", "--kills", "5"],
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
        ),
    ],
)
def test_a_sample_finds_no_fault(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
