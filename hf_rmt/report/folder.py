"""Writes the files that the report of an analysis and the report of a compression both have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hf_rmt.report.figures.style import save_figure
from hf_rmt.report.records import made_folder, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(Protocol):
    """A report on layers that `save_report` can write: it must have these methods."""

    def __len__(self) -> int: ...

    def table(self) -> str:
        """The table as plain text."""

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as strict JSON, without nan and infinity."""

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as an HTML page."""

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows of the table as comma-separated values."""

    def plot_overview(self) -> Figure:
        """A figure that shows the layers over the depth of the model."""


def save_report(report: Report, folder: str | Path) -> Path:
    """Write table.txt, report.json, report.html, layers.csv, overview.svg and overview.png.

    Args:
        report: The report to write; if it has no layers, there is no figure.
        folder: The folder to write to; it is made if it does not exist.

    Returns:
        The folder.

    Raises:
        ImportError: If matplotlib is not installed. The texts have been written before this error.
        ValueError: If the name of the folder is empty.
    """
    target = made_folder(folder)
    written(report.table(), target / "table.txt")
    report.to_json(target / "report.json")
    report.to_html(target / "report.html")
    report.to_csv(target / "layers.csv")
    if len(report):
        overview = report.plot_overview()
        for kind in ("svg", "png"):
            save_figure(overview, target / f"overview.{kind}")
    return target
