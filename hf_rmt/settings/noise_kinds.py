"""The names of the kinds of noise store; `hf_rmt.nn.stores.noise_store` describes them."""

NOISE_KINDS = ("drop", "ternary", "int4", "int8", "keep")
PACKED_KINDS = ("ternary", "int4", "int8")
