"""A report as one HTML page that needs no network and no other file.

The template, the style and the scripts are files in `html/`, next to this module.
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
"""The scripts of the page, in the order in which they run."""


PAGES = (".html", ".htm")
"""The allowed endings of an HTML file."""


def page_text(content: Mapping[str, Any], *, title: str) -> str:
    """The text of a page that shows a report.

    Names of layers and notes may contain any characters. The page holds them as JSON without any
    `<`, and the scripts show them as text. The security policy of the page forbids loading
    anything. It also forbids all scripts except those of the page.

    Args:
        content: Plain values, as `spectral_content` and `compression_content` make them.
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
    r"""JSON with `<`, `>` and `&` written as codes, so that no text in it can end the script tag.

    Examples:
        >>> print(embedded({"name": "</script>"}))
        {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(plain(content), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return files("hf_rmt.report.page").joinpath("html", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The hash of a script or style in a page, by which the page's security policy allows it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
