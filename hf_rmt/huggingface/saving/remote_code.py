"""Makes the code file that is saved with a model, so that the model loads without this package."""

from __future__ import annotations

import ast
import hashlib
import inspect
from functools import cache
from types import ModuleType

from hf_rmt import checks
from hf_rmt.huggingface import loader
from hf_rmt.huggingface.saving import alarm, integrity, record
from hf_rmt.huggingface.saving.record import REMOTE_MODULE
from hf_rmt.nn import (
    constants,
    counterparts,
    dense_matrix,
    int8_matmul,
    kept,
    noise_product,
    swap,
    tensor_checks,
    ternary_product,
    transforms,
)
from hf_rmt.nn.layers import (
    compressed_layer,
    laid_out_layer,
    spiked,
    spiked_conv,
    step_activation,
    ternary,
)
from hf_rmt.nn.stores import (
    codebooks,
    export_ops,
    group_scales,
    noise_store,
    packing,
    ternary_packing,
)
from hf_rmt.plan import field_rules, outcomes, plans, step_record
from hf_rmt.settings import noise_kinds

REMOTE_FILE = f"{REMOTE_MODULE}.py"
REMOTE_CONFIG = f"{REMOTE_MODULE}.RemoteConfig"

BUNDLED: tuple[ModuleType, ...] = (
    checks,
    noise_kinds,
    outcomes,
    step_record,
    field_rules,
    plans,
    dense_matrix,
    compressed_layer,
    swap,
    constants,
    codebooks,
    export_ops,
    group_scales,
    packing,
    tensor_checks,
    kept,
    transforms,
    noise_store,
    noise_product,
    laid_out_layer,
    spiked,
    spiked_conv,
    ternary_packing,
    int8_matmul,
    ternary_product,
    ternary,
    step_activation,
    counterparts,
    alarm,
    record,
    integrity,
    loader,
)
"""The modules that make up the code file, which is saved with a model. Each comes after the
modules that it imports."""

EPILOGUE = '''
from transformers import AutoConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING


class LoaderVersions:
    """The loaders in all versions of this file that the process has read.

    Each model is loaded by the version that was saved with it. If the package hf_rmt is imported,
    its loader replaces all of these.
    """

    def __init__(self):
        self.versions = {}

    def of(self, code):
        if code not in self.versions:
            raise ValueError(
                f"config.json names version {code!r} of {REMOTE_MODULE}.py, but the file beside it "
                "is another version; get both files again, or pip install hf_rmt and import it"
            )
        return self.versions[code]

    def from_dict(self, config_dict, return_unused_kwargs=False, **kwargs):
        record = self.of(config_dict.get("code", CODE))[0]
        return record.from_dict(config_dict, return_unused_kwargs, **kwargs)

    def __call__(self, quantization_config, **kwargs):
        return self.of(quantization_config.code or CODE)[1](quantization_config, **kwargs)


if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = LoaderVersions()
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = AUTO_QUANTIZER_MAPPING[QUANT_METHOD]
if hasattr(AUTO_QUANTIZER_MAPPING[QUANT_METHOD], "versions"):
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD].versions[CODE] = (CompressionRecord, RMTLoader)
silence_alarm()


class RemoteConfig:
    """Reads the config by transformers or by the user's own config class.

    `auto_map` in config.json names this class instead of the user's class. So transformers imports
    this file, and the import registers the quantizer.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        pass

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        kwargs.pop("trust_remote_code", None)
        config = PreTrainedConfig.get_config_dict(name, **kwargs)[0]
        own, kind = (config.get("auto_map") or {}).get(OWN_CONFIG), config.get("model_type")
        if own is not None:
            found = get_class_from_dynamic_module(own, name, **kwargs)
            found.register_for_auto_class()
            return found.from_pretrained(name, **kwargs)
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"model_type {kind!r} is no architecture of transformers, and {name} names no code "
                "for it; import the module of its classes and register them by AutoConfig.register "
                "and AutoModel.register, or load the model with its own class"
            )
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)
'''


@cache
def remote_code() -> str:
    """The code that is saved with a compressed model, so that it loads without this package.

    Returns:
        Python source that imports torch and transformers, but not this package.
    """
    head = f'"""{REMOTE_MODULE}: made by hf_rmt from its modules; change the code there."""\n'
    start = f"{head}from __future__ import annotations\n\nCODE = {version_of_code()!r}"
    return f"{start}\n\n{_body()}"


@cache
def version_of_code() -> str:
    """A digest of the code from `remote_code`; a saved model's `quantization_config` has it."""
    return hashlib.sha256(_body().encode()).hexdigest()[:16]


@cache
def _body() -> str:
    parts = [_without_own_imports(inspect.getsource(module)) for module in BUNDLED]
    return "\n\n".join([*parts, EPILOGUE])


def _without_own_imports(source: str) -> str:
    """The source of a module, changed so that many modules can be joined into one file.

    It lacks the docstrings of the module and of its constants, and all imports of this package and
    of `__future__`.
    """
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
