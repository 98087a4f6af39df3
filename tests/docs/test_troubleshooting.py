"""Every message that the page explains is one that the package has, word for word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = [
    message
    for line in PAGE.splitlines()
    if line.startswith("**`")
    for message in re.findall(r"`([^`]+)`", line)
]
OF_OTHERS = ["RuntimeError"]
"""Headings that are no message of this package."""


def messages() -> str:
    """All texts of the package, with a gap in place of each value."""
    found = []
    for path in sorted((ROOT / "hf_rmt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "") for part in node.values]
                texts = [part if isinstance(part, str) else "\0" for part in parts]
                found.append("".join(texts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(re.sub(r"%[.\d]*[a-z]", "\0", text) for text in found)


TEXTS = messages()


def pieces(heading: str) -> list[str]:
    """The words of a heading between its gaps: capitals, numbers' letters, dots and quotes."""
    gaps = r"\.\.\.|'[A-Z]+'|\b[A-Z]{2,}\b|\b[NM]\b|=[\w']+"
    return [piece.strip(" =%':") for piece in re.split(gaps, heading)]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_message_that_is_explained_exists(heading: str) -> None:
    if heading in OF_OTHERS:
        return
    words = [piece for piece in pieces(heading) if len(piece.split()) > 1]
    assert words or heading in TEXTS
    assert all(piece in TEXTS for piece in words), words
