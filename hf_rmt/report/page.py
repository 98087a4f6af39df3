"""A report as one HTML page, complete in itself: no network, no other file.

The template, the style and the scripts are files beside this module, in `html/`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from hf_rmt.report.records import plain

SCRIPTS = ("svg.js", "spectrum.js", "depth.js", "filters.js", "table.js", "detail.js", "page.js")
"""In the order in which they run."""


def page_text(content: Mapping[str, Any], *, title: str) -> str:
    """The text of a page that shows a report.

    Names of layers and notes may hold anything: they travel as JSON in which no `<` is left, and
    the scripts show them as text. The page's own policy lets nothing be loaded, and lets no script
    run but its own.

    Args:
        content: Plain values, as `page_data` makes them.
        title: Heading of the page.

    Returns:
        The text.
    """
    style, script = _part("page.css"), "\n".join(map(_part, SCRIPTS))
    return Template(_part("page.html")).substitute(
        title=html.escape(title),
        policy=f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}",
        style=style,
        script=script,
        content=embedded({**content, "title": title}),
    )


def embedded(content: Mapping[str, Any]) -> str:
    r"""JSON in which `<`, `>` and `&` are written by number, so that no content ends its script.

    Examples:
        >>> print(embedded({"name": "</script>"}))
        {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(plain(content), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return files("hf_rmt.report").joinpath("html", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """How a page's policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
