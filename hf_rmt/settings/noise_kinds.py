"""The names of the ways to store noise, which is a weight minus its signal (see `hf_rmt.spectra`).

`hf_rmt.nn.stores.noise_store.NoiseStore` describes each of them.
"""

NOISE_KINDS = ("drop", "ternary", "int4", "int8", "keep")
PACKED_KINDS = ("ternary", "int4", "int8")
