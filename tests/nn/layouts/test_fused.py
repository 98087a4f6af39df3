"""The layout whose Triton kernel decodes codes while it multiplies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.layouts import set_layout


def test_the_kernel_agrees_in_the_interpreter() -> None:
    """Triton reads the variable when it is imported, so these tests need their own process."""
    pytest.importorskip("triton", reason="Triton is not installed")
    file = Path(__file__).with_name("fused_in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(file)]
    process = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-3000:]
    assert "47 passed" in process.stdout


def test_where_there_is_no_cuda_the_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layer = SpikedLinear.from_factors(
        torch.ones(64, 1), torch.ones(1, 96), torch.randn(64, 96), None, noise="int4"
    )
    line = set_layout(layer, "fused")
    assert line.startswith("layouts: 1 packed;")
    assert "; 1 not fused: " in line
    assert "Triton is not installed" in line or "runs on CUDA, and the layer is on cpu" in line
    assert "not fused" not in set_layout(layer, "packed")
