from __future__ import annotations

import pytest

from hf_rmt.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints, which must succeed."""
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out
