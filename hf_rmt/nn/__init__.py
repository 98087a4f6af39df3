"""Compressed layers, which take the place of dense ones and hold their weights in fewer bits.

Most of them split a weight into a low-rank signal, which can be trained, and the rest, the noise.

This package uses torch, but not transformers.
"""

from hf_rmt.nn.layers.latent_ternary import LatentTernaryLinear
from hf_rmt.nn.layers.spiked import SpikedLinear
from hf_rmt.nn.layers.spiked_conv import SpikedConv2d
from hf_rmt.nn.layers.step_activation import StepActivation, StepBefore
from hf_rmt.nn.layers.ternary import TernaryLinear
from hf_rmt.nn.stores import jit_packing, jit_product, jit_unpack, noise_store, packing
from hf_rmt.nn.stores.noise_store import NoiseStore, stored_bits
from hf_rmt.settings.noise_kinds import NOISE_KINDS

noise_store.unpacker, noise_store.multiplier = jit_unpack, jit_product
packing.packer = jit_packing

__all__ = [
    "NOISE_KINDS",
    "LatentTernaryLinear",
    "NoiseStore",
    "SpikedConv2d",
    "SpikedLinear",
    "StepActivation",
    "StepBefore",
    "TernaryLinear",
    "stored_bits",
]
