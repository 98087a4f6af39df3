"""Registers this package with transformers and PEFT without importing them early.

After `import hf_rmt`, `from_pretrained` must know the quantization method "rmt", and PEFT must know
compressed layers. But `import hf_rmt.spectra` must not import torch. So if a module of these
libraries is not imported yet, an import hook runs the registration right after its import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"
MODELS = "transformers.modeling_utils"
LORA = "peft.tuners.lora.model"


def register_with_transformers() -> None:
    """Register this package with transformers and PEFT, now or when they are imported."""
    for name, register in REGISTRATIONS.items():
        if name in sys.modules and _is_imported(sys.modules[name]):
            register(sys.modules[name])
        elif not any(isinstance(each, _Finder) and each.name == name for each in sys.meta_path):
            sys.meta_path.insert(0, _Finder(name, register))


def _is_imported(module: ModuleType) -> bool:
    return not getattr(module.__spec__, "_initializing", False)


def _register(registry: ModuleType) -> None:
    from hf_rmt.huggingface.compat import pass_on_loading_attributes
    from hf_rmt.huggingface.config import RMTConfig
    from hf_rmt.huggingface.quantizer import RMTQuantizer
    from hf_rmt.huggingface.saving.alarm import silence_alarm
    from hf_rmt.huggingface.saving.record import QUANT_METHOD

    silence_alarm()
    pass_on_loading_attributes(registry, RMTConfig)
    registry.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = RMTConfig
    registry.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = RMTQuantizer


def _register_saving(models: ModuleType) -> None:
    from hf_rmt.huggingface.saving.save import keep_records_true

    keep_records_true(models.PreTrainedModel)


def _register_lora(lora_model: ModuleType) -> None:
    from hf_rmt.huggingface.compat import teach_peft

    teach_peft(lora_model)


REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    REGISTRY: _register,
    MODELS: _register_saving,
    LORA: _register_lora,
}
"""For each name of a module, the function that is called with this module after its import."""


class _Finder(MetaPathFinder):
    """An import hook that waits for one module, such as `peft.tuners.lora.model`.

    Python imports the module as usual. Then `register` is called with the module.
    """

    def __init__(self, name: str, register: Callable[[ModuleType], None]) -> None:
        self.name, self.register = name, register

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            if self in sys.meta_path:  # a module may be found many times before it is executed
                sys.meta_path.remove(self)
            execute(module)
            self.register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
