"""The Python of README.md runs as printed: in order, in one namespace, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
PYTHON_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```python\n(?P<code>.*?)^```$", re.M | re.S
)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The line and the code of each block that is to run."""
    return [
        (text.count("\n", 0, match.start("code")) + 1, match["code"])
        for match in PYTHON_BLOCK.finditer(text)
        if match["reason"] is None
    ]


def test_python_blocks_are_told_apart():
    text = "a\n```python\nx = 1\n```\n<!-- not run: slow -->\n```python\ny\n```\n```bash\nls\n```\n"
    assert python_blocks(text) == [(3, "x = 1\n")]


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert blocks
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks:
        padded = "\n" * (line - 1) + code  # so that a traceback gives the line of the README
        exec(compile(padded, str(README), "exec", dont_inherit=True), namespace)
