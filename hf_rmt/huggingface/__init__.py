"""All code that uses transformers or the Hugging Face Hub."""

# Registration imports this package's modules as soon as the registry exists. The registry must
# exist before any of them begins to load. Otherwise the module that imports it first would itself
# be half initialised.
import transformers.quantizers.auto  # noqa: F401
