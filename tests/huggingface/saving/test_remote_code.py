from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
from transformers.quantizers import auto

from hf_rmt.huggingface.saving.record import QUANT_METHOD
from hf_rmt.huggingface.saving.remote_code import BUNDLED, remote_code, version_of_code


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


def module_of(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def test_each_model_is_loaded_by_the_version_that_was_written_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, QUANT_METHOD)
    other = remote_code().replace(version_of_code(), "another")
    one, two = (
        module_of(source, name, monkeypatch)
        for source, name in ((remote_code(), "first_remote"), (other, "second_remote"))
    )
    for module, code in ((one, version_of_code()), (two, "another"), (one, version_of_code())):
        record = {"quant_method": QUANT_METHOD, "layers": {}, "code": code}
        loader = auto.AutoHfQuantizer.from_config(record, pre_quantized=True)
        assert type(loader) is module.RMTLoader
        assert type(loader.quantization_config) is module.CompressionRecord
    with pytest.raises(ValueError, match=r"'unknown'.*pip install hf_rmt"):
        auto.AutoHfQuantizer.from_config({**record, "code": "unknown"}, pre_quantized=True)


def test_the_package_is_not_replaced_by_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD]
    module_of(remote_code(), "third_remote", monkeypatch)
    assert auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] is before
