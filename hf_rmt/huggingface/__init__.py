"""Everything that knows transformers and the Hub."""

# Registration imports this package's modules as soon as the registry exists. It must exist before
# any of them begins to load, or the one that loads it first would be met half-initialised.
import transformers.quantizers.auto  # noqa: F401
