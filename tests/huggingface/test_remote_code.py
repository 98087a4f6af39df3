from __future__ import annotations

import ast
import inspect
from collections import Counter

from hf_rmt.huggingface.remote_code import BUNDLED, remote_code


def test_the_code_file_imports_neither_the_package_nor_anything_relative() -> None:
    for node in ast.walk(ast.parse(remote_code())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert not (node.module or "").startswith("hf_rmt")
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("hf_rmt") for alias in node.names)


def test_what_bundled_modules_import_from_the_package_is_bundled_before_them() -> None:
    seen: set[str] = set()
    for module in BUNDLED:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_rmt"):
                assert node.module in seen, f"{module.__name__} imports {node.module}"
        seen.add(module.__name__)


def test_no_two_bundled_modules_define_the_same_name() -> None:
    names = Counter(
        node.name
        for node in ast.parse(remote_code()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
    assert len(BUNDLED) > 4
    assert [name for name, count in names.items() if count > 1] == []
