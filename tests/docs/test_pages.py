"""The Python of every page runs as printed: in order, one namespace a page, in an empty folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_rmt.settings import methods, unregister_method
from tests.test_readme import python_blocks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
RUNNING = [page for page in PAGES if python_blocks(page.read_text(encoding="utf-8"))]
LINK = re.compile(r"\]\((?!https?://|#)(?P<path>[^)#\s]+)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def only_methods_of_the_package() -> Iterator[None]:
    known = set(methods())
    yield
    for name in set(methods()) - known:
        unregister_method(name)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # of peft
@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_bert: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, code in python_blocks(page.read_text(encoding="utf-8")):
        padded = "\n" * (line - 1) + code  # so that a traceback gives the line of the page
        exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)


def test_each_guide_has_blocks_that_run() -> None:
    guides = set((DOCS / "guides").glob("*.md")) - {DOCS / "guides" / "index.md"}
    assert guides
    assert guides <= set(RUNNING)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        assert (page.parent / match["path"]).exists(), match["path"]


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_bert: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        assert not cell["outputs"], "clear the outputs before the notebook is committed"
        exec(compile("".join(cell["source"]), cell["id"], "exec", dont_inherit=True), namespace)
