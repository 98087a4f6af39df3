"""Rows of a report as aligned text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rmt.spectra import Phase, SpectrumFit

Row = Mapping[str, Any]
"""A row of a table: values by the names of their columns. All rows have the same columns."""
MISSING = "-"
LITTLE = 1e-3
"""A positive share below this is written as `< 0.1 %`. A share below 1 but closer to it than this
is written as `> 99.9 %`."""
ROUNDING = 1e-6
"""A negative share that is closer to 0 than this counts as a rounding error."""


class Share(float):
    """A fraction that tables show in percent; CSV and JSON files hold the fraction itself."""


def aligned_table(rows: Sequence[Row]) -> str:
    """Plain text in columns: numbers (with three digits) are aligned right, text is aligned left.

    Args:
        rows: The rows; underscores in the names of columns become spaces. A column without any
            value is left out.

    Returns:
        A header, a line of dashes and one line per row; an empty text if there are no rows.

    Examples:
        >>> print(aligned_table([{"name": "key", "stable_rank": 12.3456}]))
        name  stable rank
        ----  -----------
        key          12.3
    """
    if not rows:
        return ""
    columns = []
    for key in _filled(rows):
        values = [row[key] for row in rows]
        cells = [key.replace("_", " "), *(cell(value) for value in values)]
        width = max(map(len, cells))
        cells.insert(1, "-" * width)
        right = any(_is_number(value) for value in values)
        columns.append([text.rjust(width) if right else text.ljust(width) for text in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown_table(rows: Sequence[Row]) -> str:
    """A table in GitHub Markdown with the cells of `aligned_table`; empty if there are no rows."""
    if not rows:
        return ""
    shown = _filled(rows)
    header = [key.replace("_", " ") for key in shown]
    rule = ["---:" if any(_is_number(row[key]) for row in rows) else "---" for key in shown]
    body = [[cell(row[key]).replace("|", "\\|") for key in shown] for row in rows]
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
    """One value as text: a float in three digits, a share in percent, `-` if it is missing.

    Examples:
        >>> cell(0.12345), cell(384), cell(float("nan")), cell("int8"), cell(Share(0.12345))
        ('0.123', '384', '-', 'int8', '12.3 %')
    """
    value = _known(value)
    if value is None:
        return MISSING
    if isinstance(value, Share):
        return percent(value)
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value))


def one_line(text: str) -> str:
    """A text in one line: characters that cannot be printed, such as a line break, are escaped.

    Examples:
        >>> one_line(chr(10)) == repr(chr(10))[1:-1]
        True
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def code(text: str) -> str:
    """A text as code in Markdown; a text with backticks gets a longer row of backticks around it.

    Examples:
        >>> code("query"), code("a`b")
        ('`query`', '`` a`b ``')
    """
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def percent(fraction: float) -> str:
    """A share in percent. Only an exact 0 is "0 %", only an exact 1 is "100 %".

    Args:
        fraction: The share. Rounding errors may have made it slightly negative.

    Returns:
        The text; `-` for nan.

    Examples:
        >>> percent(0.0), percent(-1.5e-15), percent(2e-6), percent(0.1234), percent(0.99999)
        ('0 %', '< 0.1 %', '< 0.1 %', '12.3 %', '> 99.9 %')
    """
    if math.isnan(fraction):
        return MISSING
    if fraction != 0 and -ROUNDING <= fraction < LITTLE:
        return f"< {100 * LITTLE:g} %"
    if 1 - LITTLE < fraction < 1:
        return f"> {100 * (1 - LITTLE):g} %"
    return f"{100 * fraction:.3g} %"


def size_text(count: float) -> str:
    """A number of bytes, in the unit that suits it.

    Examples:
        >>> size_text(900), size_text(12_345_678), size_text(2.5e9)
        ('900 B', '12.3 MB', '2.50 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            digits = max(0, 2 - int(math.log10(count / unit)))
            return f"{count / unit:.{digits}f} {name}"
    return f"{count:.0f} B"


def counted(number: int, noun: str = "spike") -> str:
    """A number with a noun in the singular or the plural, such as `2 spikes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def counted_signal(fit: SpectrumFit) -> str:
    """The number of signal directions of a weight, with a noun, such as `2 spikes`.

    `hf_rmt.spectra` explains signal and spikes. If the verdict of the fit is `no law` (see
    `SpectrumFit`), the noun is `directions`.
    """
    return counted(fit.n_spikes, "direction" if fit.phase == Phase.LAWLESS else "spike")


def shape_text(shape: tuple[int, int]) -> str:
    """The shape (out, in) as the text `out x in`."""
    return f"{shape[0]} x {shape[1]}"


def _filled(rows: Sequence[Row]) -> list[str]:
    """Names of the columns that have a value in at least one of the rows."""
    return [key for key in rows[0] if any(_known(row[key]) not in (None, "") for row in rows)]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
