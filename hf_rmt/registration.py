"""Registering quant_method "rmt" without importing transformers before its time.

`import hf_rmt.spectra` must stay free of torch, and `import hf_rmt` must be enough for
`from_pretrained` to know the method. So where transformers is not imported yet, a finder waits
for the one module that holds the registry and completes it right after it has run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"


def register_with_transformers() -> None:
    """Register the config and the quantizer now or when transformers is imported."""
    if REGISTRY in sys.modules:
        _register(sys.modules[REGISTRY])
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


def _register(registry: ModuleType) -> None:
    from hf_rmt.huggingface.config import RMTConfig
    from hf_rmt.huggingface.quantizer import RMTQuantizer
    from hf_rmt.huggingface.record import QUANT_METHOD

    registry.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = RMTConfig
    registry.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = RMTQuantizer


class _RegistryFinder(MetaPathFinder):
    """Finds the registry as usual, and registers once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
