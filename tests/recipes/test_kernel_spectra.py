"""The recipe that compares kernels with their equivalents and draws their eigenvalues."""

from __future__ import annotations

from pathlib import Path

from tests.processes import RECIPES, succeed


def test_tables_and_figure_come_from_one_command(tmp_path: Path) -> None:
    figure = tmp_path / "kernels.svg"
    options = ["--sizes", "32", "64", "--seeds", "1", "--width", "0", "--samples", "32"]
    options += ["--features", "500", "--tables", "exact", "steps", "--figure", str(figure)]
    process = succeed(RECIPES / "kernel_spectra.py", *options)
    assert "relu" in process.stdout
    assert figure.read_text(encoding="utf-8").count("<svg") == 1
