"""Parts of the pages that are made of the code, so that they cannot go out of date.

The tables stand in the pages between two comments. `python docs/_ext/from_code.py` writes them
anew, and a test fails where that was forgotten. A line such as
`<!-- made from the code: api of hf_rmt -->` is filled in by Sphinx alone, since it takes Sphinx's
own directives.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any

TABLE = re.compile(r"^<!-- made from the code: (\w+) -->\n.*?^<!-- end -->$", re.M | re.S)
API = re.compile(r"^<!-- made from the code: api of ([\w.]+) -->$", re.M)
PAGES = Path(__file__).parents[1]


def refreshed(text: str) -> str:
    """The text of a page with each table written anew.

    Args:
        text: Markdown.

    Returns:
        Markdown with the same comments.

    Raises:
        KeyError: If a comment names no table.
    """

    def written(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- made from the code: {name} -->\n\n{TABLES[name]()}\n\n<!-- end -->"

    return TABLE.sub(written, text)


def expanded(text: str) -> str:
    """The text of a page as Sphinx reads it, with the directives that document modules."""
    return API.sub(lambda match: api(match[1]), refreshed(text))


def methods_table() -> str:
    """What each method does, in the words of its own file."""
    from hf_rmt.settings import methods

    rows = [(f"`{name}`", method.help) for name, method in methods().items()]
    return table(("method", "what it does"), rows)


def options_table() -> str:
    """Every option of `RMTConfig` with its default and its meaning."""
    from hf_rmt.settings import all_options

    rows = [(f"`{name}`", f"`{o.default!r}`", o.help) for name, o in all_options().items()]
    return table(("option", "default", "meaning"), [("`method`", "`'pdb'`", "See above."), *rows])


def matrix() -> str:
    """Which method reads which option."""
    from hf_rmt.settings import COMMON_OPTIONS, all_options, methods

    known = methods()
    common = {option.name for option in COMMON_OPTIONS}

    def mark(option: str, method: Any) -> str:
        if option in method.one_of:
            return "one of" if len(method.one_of) > 1 else "needed"
        read = option in common or any(own.name == option for own in method.options)
        if option == "recover_spikes" and not getattr(method, "finds_law", True):
            return ""  # it may be None or False there, and neither means anything
        return "yes" if read else ""

    rows = [
        (f"`{name}`", *(mark(name, method) for method in known.values())) for name in all_options()
    ]
    return table(("option", *(f"`{name}`" for name in known)), rows)


def verdicts() -> str:
    """Each verdict with its sentence."""
    from hf_rmt.report.verdicts import VERDICTS

    return table(
        ("verdict", "what it means and what to do"),
        [(f"`{phase}`", text) for phase, text in VERDICTS.items()],
    )


def noise() -> str:
    """Bits of each kind of noise store, without a signal."""
    from math import nan

    import torch

    from hf_rmt.nn import NOISE_KINDS, stored_bits

    side = 768
    rows = []
    for kind in NOISE_KINDS:
        bits = stored_bits((side, side), 0, kind, dtype=torch.float32) / side**2 or nan
        rows.append((f"`{kind}`", "0" if bits != bits else f"{bits:.2f}"))
    return table(("noise", f"bits a weight of a {side} x {side} layer, without its signal"), rows)


def api(module_name: str) -> str:
    """Directives that document the public classes and functions of a module.

    A class that `hf_rmt` itself offers is documented there, and named here.
    """
    module, package = import_module(module_name), import_module("hf_rmt")
    lines, above = ["```{eval-rst}"], []
    for name in module.__all__:
        value = getattr(module, name)
        if module is not package and isclass(value) and value is getattr(package, name, None):
            above.append(f"`{name}`")
        elif isclass(value):
            lines += [f".. autoclass:: {module_name}.{name}", "   :members:", ""]
        elif isfunction(value):
            lines += [f".. autofunction:: {module_name}.{name}", ""]
    seen = [f"Documented above: {', '.join(above)}.", ""] if above else []
    return "\n".join([*seen, *lines, "```"])


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "options": options_table,
    "matrix": matrix,
    "verdicts": verdicts,
    "noise": noise,
}


def as_restructured(lines: list[str]) -> None:
    """Turn the Markdown of a docstring into what Sphinx reads, in place, outside of doctests."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            words = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
            pieces = words.split("``")
            pieces[::2] = [re.sub(r"(\|)|(?<=\w)(_)(?!\w)", r"\\\g<0>", one) for one in pieces[::2]]
            lines[place] = "``".join(pieces)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""

    def read(app: Any, name: str, source: list[str]) -> None:
        source[0] = expanded(source[0])

    def document(app: Any, what: str, name: str, value: Any, options: Any, lines: Any) -> None:
        as_restructured(lines)

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", document, priority=100)
    return {"parallel_read_safe": True}


def main() -> None:
    """Write the tables of all pages anew."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    for page in sorted(PAGES.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        if (after := refreshed(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main()
