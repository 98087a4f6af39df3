"""Compressed layers: a low-rank signal that trains, and noise stored in a few bits.

Knows torch and nothing of transformers.
"""

from hf_rmt.nn.latency import latency_ratio
from hf_rmt.nn.noise import NoiseStore, stored_bits
from hf_rmt.nn.spiked import SpikedLinear
from hf_rmt.settings import NOISE_KINDS

__all__ = ["NOISE_KINDS", "NoiseStore", "SpikedLinear", "latency_ratio", "stored_bits"]
