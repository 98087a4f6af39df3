"""The code file that a pushed model carries, so that it loads without this package."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from types import ModuleType

from hf_rmt import checks, plan
from hf_rmt.huggingface import loader, record
from hf_rmt.nn import (
    codebooks,
    compressed_layer,
    counterparts,
    dense_matrix,
    export_ops,
    int8_matmul,
    noise_store,
    spiked,
    spiked_conv,
    step_activation,
    swap,
    ternary,
    ternary_packing,
)
from hf_rmt.settings import noise_kinds

REMOTE_MODULE = "hf_rmt_remote"
REMOTE_FILE = f"{REMOTE_MODULE}.py"
REMOTE_CONFIG = f"{REMOTE_MODULE}.RemoteConfig"

BUNDLED: tuple[ModuleType, ...] = (
    checks,
    noise_kinds,
    plan,
    dense_matrix,
    compressed_layer,
    swap,
    codebooks,
    export_ops,
    noise_store,
    spiked,
    spiked_conv,
    ternary_packing,
    int8_matmul,
    ternary,
    step_activation,
    counterparts,
    record,
    loader,
)
"""In the order in which they import each other."""

EPILOGUE = '''
from transformers import AutoConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, CompressionRecord)
AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, RMTLoader)


class RemoteConfig:
    """Registers the quantizer, by being imported, and leaves the config to transformers."""

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        pass

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        kwargs.pop("trust_remote_code", None)
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)
'''


@cache
def remote_code() -> str:
    """One file with all that loading needs: layers, noise stores, config and loader.

    Returns:
        Python source that imports torch and transformers only.
    """
    parts = [_without_own_imports(inspect.getsource(module)) for module in BUNDLED]
    head = f'"""{REMOTE_MODULE}: written by hf_rmt, which is the place to read and change it."""\n'
    return "\n\n".join([head + "from __future__ import annotations", *parts, EPILOGUE])


def _without_own_imports(source: str) -> str:
    """Source less its docstring, its imports from this package and from __future__."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        own = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            ("hf_rmt", "__future__")
        )
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if own or docstring:
            lines[node.lineno - 1 : node.end_lineno] = [""] * (
                (node.end_lineno or node.lineno) - node.lineno + 1
            )
    return "\n".join(lines).strip()
