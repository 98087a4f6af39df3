"""What holds for each script in `recipes/`, and for each file of their workbench."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import RECIPES, succeed

SCRIPTS = sorted(path.stem for path in RECIPES.glob("*.py"))
FILES = sorted(RECIPES.rglob("*.py"))
ROOMS = {f"hf_rmt{room}" for room in ("", ".demo", ".kernels", ".nn", ".plan", ".report")}
ROOMS |= {"hf_rmt.spectra", "hf_rmt.settings", "hf_rmt.nn.layouts"}
"""What anybody may import from the package."""
DEEPER = {
    "bench_layers": {"hf_rmt.nn.stores.machine_code"},  # unpacks with and without Numba
    "bench_memory": {"hf_rmt.huggingface.quantizer"},
    "bench_regime": {"hf_rmt.report.tables"},
    "bench_fidelity": {"hf_rmt.compression.targets.selection"},
    "bench_spectra": {"hf_rmt.spectra.ensembles"},
    "kernel_spectra": {"hf_rmt.kernels.simulation", "hf_rmt.report.figures.style"},
    "ntk_mlp": {"hf_rmt.report.tables"},
    "spectra": {
        *("hf_rmt.report.depth", "hf_rmt.report.records", "hf_rmt.report.tables"),
        "hf_rmt.spectra.agreement",
    },
    "workbench.models.simulated_bert": {"hf_rmt.spectra.ensembles"},
    "workbench.report.comparison": {
        "hf_rmt.report.figures.axes",
        "hf_rmt.report.figures.bins",
        "hf_rmt.report.figures.style",
    },
    "workbench.report.estimation_tables": {"hf_rmt.spectra.balance", "hf_rmt.spectra.ensembles"},
    "workbench.report.memory_study": {"hf_rmt.report.figures.style"},
    "workbench.report.method_rows": {"hf_rmt.report.search"},
    "workbench.report.regime_figure": {"hf_rmt.report.figures.style"},
    "workbench.report.result_figures": {"hf_rmt.report.figures.style"},
    "workbench.report.results": {"hf_rmt.report.records", "hf_rmt.report.tables"},
    "workbench.report.spectra_tables": {"hf_rmt.report.tables"},
    "workbench.writing": {"hf_rmt.report.figures.style"},
}
"""What recipes import from below these rooms; a shorter list is better, a longer one is not."""
WRITERS = {"write_text", "write_bytes", "savefig", "save_figure", "save_pretrained", "save_model"}
WRITERS |= {"torch.save", "np.save", "np.savez", "json.dump"}
ASIDE = {"replaced", "replaced_files", "replaced_folder", "TemporaryDirectory"}
"""Context managers whose block writes beside the results."""
INSIDE = {
    "bench_memory": {"make"},  # called with a temporary folder
    "bench_distributed": {"worker"},  # called with a temporary folder
    "workbench.report.method_table": {"save_best", "write_card"},  # called with a folder aside
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(RECIPES).with_suffix("").parts)


def is_module(name: str) -> bool:
    place = RECIPES.parent / name.replace(".", "/")
    return name.startswith("hf_rmt.") and (place.is_dir() or place.with_suffix(".py").exists())


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{name.name}" for name in node.names}
            modules = {name for name in names if is_module(name)}
            found |= modules or {node.module or ""}
    return found


def test_no_recipe_imports_another() -> None:
    assert len(SCRIPTS) > 10
    for path in FILES:
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & set(SCRIPTS), f"{path.name} imports a recipe"


def test_recipes_import_public_rooms_and_a_known_list_below_them() -> None:
    deeper = {
        module_name(path): {
            name for name in imported(path) if name.split(".")[0] == "hf_rmt" and name not in ROOMS
        }
        for path in FILES
    }
    assert {name: found for name, found in deeper.items() if found} == DEEPER


def test_what_is_no_recipe_lives_in_the_workbench() -> None:
    for name in SCRIPTS:
        text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
        assert 'if __name__ == "__main__":' in text, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_docstring_and_embedded_is_an_option(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        recipe.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    first = recipe.__doc__.splitlines()[0]
    assert first.endswith((".", ":"))
    assert first in shown
    assert f"    python recipes/{name}.py --embedded\n" in shown
    options = recipe.parser()._option_string_actions
    assert options["--embedded"].default is False
    silent = {key for key, action in options.items() if not action.help and key.startswith("--")}
    assert not {key for key in silent if not key.startswith("--no_")}, "options without help"


def test_help_needs_no_more_than_the_command_line() -> None:
    shown = succeed(RECIPES / "kernel_spectra.py", "--help").stdout
    assert "Compare kernels of wide networks with their theory" in shown


EMBEDDED = {
    "bench_compress": "peak_in_largest_weights",
    "bench_heads": "default",
    "bench_spectra": "300 x 200",
    "bench_ternary": "96x64",
    "kernel_spectra": "three values",
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_benches_run_in_seconds_without_data(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_RMT_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--embedded"])
    importlib.import_module(name).main()
    assert EMBEDDED[name] in capsys.readouterr().out


def test_every_result_is_written_aside_and_renamed() -> None:
    bare = {
        f"{name}: line {line}"
        for path in FILES
        if (name := module_name(path)) != "workbench.writing"
        for line, function in written_in_place(path)
        if function not in INSIDE.get(name, ())
    }
    assert not bare


def written_in_place(path: Path) -> Iterator[tuple[int, str]]:
    """Line and function of each call that writes a file outside of a block that writes aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(
            ast.unparse(item.context_expr).split("(")[0].split(".")[-1] in ASIDE
            for item in node.items
        )
    ]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        bare = isinstance(call.func, ast.Name) and name == "write_text"  # the workbench's own
        if bare or not {name, name.split(".")[-1]} & WRITERS:
            continue
        if not any(block.lineno <= call.lineno <= (block.end_lineno or 0) for block in blocks):
            owner = [f.name for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            yield call.lineno, owner[-1] if owner else ""


def test_no_text_speaks_of_a_deck() -> None:
    assert not [path for path in FILES if "deck" in path.read_text(encoding="utf-8").lower()]
