"""The compression methods, their options, and the settings that hold the values of the options.

Importing this package does not import torch.
"""

from hf_rmt.settings.compression_settings import (
    COMMON_OPTIONS,
    CompressionSettings,
    all_options,
)
from hf_rmt.settings.method import (
    Method,
    method_named,
    method_of,
    methods,
    register_method,
    spectral_methods,
    unregister_method,
)
from hf_rmt.settings.noise_kinds import NOISE_KINDS, PACKED_KINDS
from hf_rmt.settings.option import Option

__all__ = [
    "COMMON_OPTIONS",
    "NOISE_KINDS",
    "PACKED_KINDS",
    "CompressionSettings",
    "Method",
    "Option",
    "all_options",
    "method_named",
    "method_of",
    "methods",
    "register_method",
    "spectral_methods",
    "unregister_method",
]
