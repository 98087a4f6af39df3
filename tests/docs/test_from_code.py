"""What the pages take from the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import hf_rmt
from hf_rmt.report.verdicts import VERDICTS
from hf_rmt.settings import all_options, methods

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def from_code() -> ModuleType:
    spec = importlib.util.spec_from_file_location("from_code", DOCS / "_ext" / "from_code.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_matrix_says_which_method_reads_which_option(from_code: ModuleType) -> None:
    head, _, *rows = from_code.matrix().splitlines()
    assert cells(head) == ["option", *(f"`{name}`" for name in methods())]
    assert [cells(row)[0] for row in rows] == [f"`{name}`" for name in all_options()]
    for row in rows:
        option, *marks = cells(row)
        for name, mark in zip(methods(), marks, strict=True):
            settings = {"method": name} | dict.fromkeys(methods()[name].one_of[:1], 1.0)
            if "rank" in settings:
                settings["rank"] = 1
            if not getattr(methods()[name], "stores_noise", True):
                settings["noise"] = "drop"
            read = set(hf_rmt.CompressionSettings(**settings).to_dict())
            if not getattr(methods()[name], "finds_law", True):
                read.discard("recover_spikes")  # True is refused, and None and False do nothing
            assert bool(mark) == (option.strip("`") in read), (option, name)


def test_every_method_verdict_and_public_name_is_told(from_code: ModuleType) -> None:
    assert all(f"| `{name}` |" in from_code.methods_table() for name in methods())
    assert all(text in from_code.verdicts() for text in VERDICTS.values())
    listed = from_code.api("hf_rmt")
    assert all(f" hf_rmt.{name}\n" in listed for name in hf_rmt.__all__ if name != "__version__")


PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_tables_of_a_page_are_those_of_the_code(from_code: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert from_code.refreshed(text) == text, "run `python docs/_ext/from_code.py`"
    known = from_code.TABLE.findall(text) + from_code.API.findall(text)
    assert len(known) == text.count("<!-- made from the code")


def test_every_table_stands_in_a_page(from_code: ModuleType) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(from_code.TABLE.findall(text)) == sorted(from_code.TABLES)
    assert "hf_rmt" in from_code.API.findall(text)


def test_an_old_table_is_written_anew(from_code: ModuleType) -> None:
    old = "<!-- made from the code: noise -->\n\nold\n\n<!-- end -->"
    assert from_code.noise() in from_code.refreshed(f"before\n\n{old}\n\nafter")
    with pytest.raises(KeyError, match="unknown"):
        from_code.refreshed(old.replace("noise", "unknown"))
    assert "autofunction" in from_code.expanded("<!-- made from the code: api of hf_rmt -->")


def test_a_docstring_becomes_what_sphinx_reads(from_code: ModuleType) -> None:
    lines = ["the norm |x| of `a_` and b_", ">>> a | b"]
    from_code.as_restructured(lines)
    assert lines == [r"the norm \|x\| of ``a_`` and b\_", ">>> a | b"]
