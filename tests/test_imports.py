"""What the package and its parts load, and that loading it registers the method."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "accelerate", "peft", "huggingface_hub", "matplotlib"}


def run(script: str) -> str:
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("hf_rmt", set()),
        ("hf_rmt.spectra", set()),
        ("hf_rmt.kernels", set()),
        ("hf_rmt.plan", set()),
        ("hf_rmt.report", set()),
        ("hf_rmt.nn", {"torch"}),
        ("hf_rmt.compression.spectrum", {"torch"}),
    ],
)
def test_import_loads_no_heavy_library(part, allowed):
    loaded = run(f"import sys, {part}; print(*{HEAVY!r} & set(sys.modules))").split()
    assert set(loaded) <= allowed


@pytest.mark.parametrize("order", ["hf_rmt, transformers", "transformers.quantizers.auto, hf_rmt"])
def test_import_registers_the_method_in_either_order(order):
    script = f"""
import {order}
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
print(AUTO_QUANTIZATION_CONFIG_MAPPING["rmt"].__name__, AUTO_QUANTIZER_MAPPING["rmt"].__name__)
"""
    assert run(script).split() == ["RMTConfig", "RMTQuantizer"]


def test_public_names_are_not_shadowed_by_submodules():
    script = """
import importlib.util, pkgutil, types
import hf_rmt
unneeded = set() if importlib.util.find_spec("triton") else {"hf_rmt.nn.layouts.fused_kernel"}
for module in pkgutil.walk_packages(hf_rmt.__path__, "hf_rmt."):
    if module.name not in unneeded:
        __import__(module.name)
print([n for n in hf_rmt.__all__ if isinstance(getattr(hf_rmt, n), types.ModuleType)])
"""
    assert run(script).strip() == "[]"


def test_a_search_for_a_module_does_not_cancel_its_registration():
    script = """
import importlib.util
import hf_rmt
for name in ("transformers.quantizers.auto", "transformers.modeling_utils"):
    importlib.util.find_spec(name)
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
print("rmt" in AUTO_QUANTIZER_MAPPING, PreTrainedModel.save_pretrained.keeps_records_true)
"""
    assert run(script).split() == ["True", "True"]


@pytest.mark.parametrize("first", ["loader", "quantizer"])
def test_a_module_that_registration_needs_can_be_imported_first(first):
    assert run(f"import hf_rmt.huggingface.{first}; print('loaded')").strip() == "loaded"


WITHOUT_TRANSFORMERS = """
import sys
for name in ("transformers", "accelerate", "peft", "huggingface_hub", "safetensors"):
    sys.modules[name] = None  # as where it is not installed
import torch
import hf_rmt
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64))
print(len(hf_rmt.analyze(model, target_modules="all-linear")))
settings = hf_rmt.CompressionSettings(noise="int4", target_modules=["0"])
report = hf_rmt.compress(model, settings)
same = model.compression_report.plan == report.plan
print([layer.name for layer in report.plan.compressed], same)
print(type(hf_rmt.export_dense(model)[0]).__name__, type(model[0]).__name__)
try:
    hf_rmt.RMTConfig
except ImportError as error:
    print("transformers" in str(error))
"""


def test_a_plain_module_is_compressed_where_transformers_is_not_installed():
    assert run(WITHOUT_TRANSFORMERS).split("\n")[:4] == [
        "2",
        "['0'] True",
        "Linear SpikedLinear",
        "True",
    ]
