from __future__ import annotations

import subprocess
import sys

import torch

from hf_rmt.nn.constants import constant

FAKE_FIRST = """
import torch
from torch._subclasses import FakeTensorMode
from hf_rmt.nn import SpikedLinear
from hf_rmt.nn.layouts import set_layout
x, weight = torch.randn(3, 80), torch.randn(40, 80)
factors = torch.randn(40, 2), torch.randn(2, 80)
for noise in ("int8", "int4", "ternary"):
    for layout in ("packed", "dense"):
        layer = SpikedLinear.from_factors(*factors, weight, None, noise=noise)
        set_layout(layer, layout)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            layer(x)
        assert type(layer(x).detach()) is torch.Tensor, (noise, layout)
"""


def test_a_constant_is_made_once_for_each_argument() -> None:
    made = []

    @constant
    def ones(size: int) -> torch.Tensor:
        made.append(size)
        return torch.ones(size)

    assert [len(ones(size)) for size in (2, 3, 2)] == [2, 3, 2]
    assert made == [2, 3]
    with torch.inference_mode():
        assert not ones(4).is_inference()


def test_a_first_forward_with_fake_tensors_leaves_nothing_behind() -> None:
    """In a process of its own, where no table has been made yet."""
    subprocess.run([sys.executable, "-c", FAKE_FIRST], check=True)
