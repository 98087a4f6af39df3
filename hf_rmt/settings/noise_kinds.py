"""The names under which noise is stored; `hf_rmt.nn.stores.noise_store` says how."""

NOISE_KINDS = ("drop", "ternary", "int4", "int8", "keep")
PACKED_KINDS = ("ternary", "int4", "int8")
