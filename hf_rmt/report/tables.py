"""Rows of a report as aligned text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rmt.spectra import Phase, SpectrumFit

Row = Mapping[str, Any]
"""Values under the names of their columns; every row of a table has the same ones."""
MISSING = "-"


def aligned_table(rows: Sequence[Row]) -> str:
    """Plain text in columns: numbers to the right with three digits, text to the left.

    Args:
        rows: The rows; underscores in the names of columns become spaces.

    Returns:
        A header, a rule and one line per row; empty without rows.

    Examples:
        >>> print(aligned_table([{"name": "key", "stable_rank": 12.3456}]))
        name  stable rank
        ----  -----------
        key          12.3
    """
    if not rows:
        return ""
    columns = []
    for key in rows[0]:
        values = [row[key] for row in rows]
        cells = [key.replace("_", " "), *(cell(value) for value in values)]
        width = max(map(len, cells))
        cells.insert(1, "-" * width)
        right = any(_is_number(value) for value in values)
        columns.append([text.rjust(width) if right else text.ljust(width) for text in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown_table(rows: Sequence[Row]) -> str:
    """A GitHub-flavoured table of the same cells as `aligned_table`; empty without rows."""
    if not rows:
        return ""
    header = [key.replace("_", " ") for key in rows[0]]
    rule = ["---:" if any(_is_number(row[key]) for row in rows) else "---" for key in rows[0]]
    body = [[cell(value).replace("|", "\\|") for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *body])


def csv_text(rows: Sequence[Row]) -> str:
    """Comma-separated values in full precision; a missing value is an empty field."""
    if not rows:
        return ""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _known(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def cell(value: Any) -> str:
    """One value for the eye: three digits of a fraction, `-` for what is missing.

    Examples:
        >>> cell(0.12345), cell(384), cell(float("nan")), cell("int8")
        ('0.123', '384', '-', 'int8')
    """
    value = _known(value)
    if value is None:
        return MISSING
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(fraction: float) -> str:
    """A fraction in percent, without pretending that little is nothing.

    Examples:
        >>> percent(0.0), percent(2e-6), percent(0.1234)
        ('0 %', 'under 0.01 %', '12.3 %')
    """
    return "under 0.01 %" if 0 < fraction < 1e-4 else f"{100 * fraction:.3g} %"


def counted(number: int, noun: str = "spike") -> str:
    """A number of spikes, or of something else, in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def counted_signal(fit: SpectrumFit) -> str:
    """How many directions are signal: spikes where a law says so."""
    return counted(fit.n_spikes, "direction" if fit.phase == Phase.LAWLESS else "spike")


def shape_text(shape: tuple[int, int]) -> str:
    """(out, in) as `out x in`."""
    return f"{shape[0]} x {shape[1]}"


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
