"""Layouts, the forms in which weights of compressed layers lie in memory: one file for each."""

from hf_rmt.nn.layouts import compiled, dense, fused, int8, packed
from hf_rmt.nn.layouts.base import ACTIVATIONS, LAYOUTS, Layout, register
from hf_rmt.nn.layouts.choosing import CHOICES
from hf_rmt.nn.layouts.placing import layout_line, memory_bytes, set_layout

__all__ = [
    "ACTIVATIONS",
    "CHOICES",
    "LAYOUTS",
    "Layout",
    "compiled",
    "dense",
    "fused",
    "int8",
    "layout_line",
    "memory_bytes",
    "packed",
    "register",
    "set_layout",
]
