"""The undocumented parts of transformers, peft and torch that this package uses.

Each function wraps one such part. `tests/huggingface/test_compat.py` has a test for each function.
If a new version of a library changes a part, the test of that part fails.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from hf_rmt.compression.targets.left_dense import LeftDense, register_rule
from hf_rmt.compression.targets.selection import transformers_models
from hf_rmt.nn.swap import BOUND_HOOK, CARRIERS
from hf_rmt.plan import Cause

WITHIN_ADAPTER = ".base_layer"
"""PEFT adds this to the name of a layer when it puts an adapter around the layer."""


def is_pretrained(model: object) -> bool:
    """Whether a module is a transformers model.

    The class is imported late, because this package is imported while transformers is being
    imported; see `hf_rmt.registration`.
    """
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def pass_on_loading_attributes(registry: Any, config: type) -> None:
    """Make transformers read the loading attributes of a config, such as `layout`.

    These are options for loading: `layout` is the form of the weights in memory. Without this call,
    transformers ignores the config that a user passes for a model that is quantized already.

    Args:
        registry: The module `transformers.quantizers.auto`.
        config: A class of configs with the method `get_loading_attributes`.
    """
    known = getattr(registry, "LOADING_ATTRIBUTES_CONFIG_TYPES", ())
    registry.LOADING_ATTRIBUTES_CONFIG_TYPES = (*known, config)


def source_of(model: Any) -> str:
    """The folder or Hub id that a transformers model was loaded from; empty if there is none."""
    return getattr(model.config, "_name_or_path", "") or ""


def move_accelerate_hook(old: nn.Module, new: nn.Module) -> None:
    """Move to `new` the hook that accelerate has put around the `forward` of `old`."""
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    hook: Any = getattr(old, BOUND_HOOK)
    remove_hook_from_module(old)
    add_hook_to_module(new, hook)


CARRIERS[BOUND_HOOK] = move_accelerate_hook


def converted_parameters(model: Any) -> dict[str, str]:
    """Parameters of a transformers model that its checkpoints hold in another form.

    While a model loads, several tensors of a checkpoint may be joined into one parameter, or one
    tensor split into several, transposed or permuted. Saving does the reverse.

    Returns:
        The names of the operations, by the name of the parameter.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightTransform

    conversions = getattr(model, "_weight_conversions", None) or []
    conversions = [*conversions, *get_model_conversion_mapping(model, add_legacy=False)]
    found = {}
    for conversion in conversions:
        if not isinstance(conversion, WeightConverter):
            continue
        targets, sources = (
            conversion._original_target_patterns,
            conversion._original_source_patterns,
        )
        reverse = WeightTransform(list(targets), list(sources))
        reverse.scope_prefix = conversion.scope_prefix
        reverse.base_model_prefix = conversion.base_model_prefix
        operations = " and ".join(type(operation).__name__ for operation in conversion.operations)
        for name, _ in model.named_parameters():
            if reverse.rename_source_key(name)[1] is not None:
                found[name] = operations
    return found


@register_rule
def converted(model: nn.Module) -> dict[str, LeftDense]:
    """The layers that stay dense because transformers makes their weight from other tensors.

    The checkpoint holds these other tensors. So it has no single tensor that low-rank factors could
    replace. The result maps the name of each layer to the reason.
    """
    found = {}
    for prefix, part in transformers_models(model).items():
        for key, operations in converted_parameters(part).items():
            name = f"{prefix}.{key}".lstrip(".").removesuffix(".weight")
            found[name] = LeftDense(
                Cause.CONVERTED,
                "transformers makes its weight from other tensors of the checkpoint "
                f"({operations})",
            )
    return found


def teach_peft(lora_model: Any) -> None:
    """Let PEFT put the LoRA layer of this package, `CompressedLoraLinear`, on compressed layers.

    PEFT asks several functions in turn for the LoRA layer of a module. It looks up the last one,
    `dispatch_default`, by name each time. So this name gets a function that tries our layer first.

    Args:
        lora_model: The module `peft.tuners.lora.model`.
    """
    before = lora_model.dispatch_default
    if getattr(before, "knows_compressed", False):
        return

    def dispatch(target: Any, adapter_name: str, config: Any, **kwargs: Any) -> Any:
        from hf_rmt.huggingface.lora.layer import compressed_lora

        ours = compressed_lora(target, adapter_name, config, **kwargs)
        return before(target, adapter_name, config=config, **kwargs) if ours is None else ours

    dispatch.knows_compressed = True  # type: ignore[attr-defined]
    lora_model.dispatch_default = dispatch


def refused_by_peft(model: Any, name: str) -> bool:
    """Whether PEFT refuses to adapt a layer of this model, as with some layers of Mamba."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False


def saves_adapter_only(model: Any) -> bool:
    """Whether `save_pretrained` of a transformers model writes its adapter and nothing else."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_layers(model: nn.Module) -> list[str]:
    """Names of the modules that PEFT has put around other modules, the outer modules first."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = BaseTunerLayer, AuxiliaryTrainingWrapper
    return [name for name, part in model.named_modules() if isinstance(part, kinds)]


def shed_adapters(model: nn.Module) -> None:
    """Remove the wrappers that PEFT leaves around layers after their last adapter was deleted."""
    left = {name: model.get_submodule(name) for name in adapter_layers(model)}
    for name in reversed(left):  # the inner ones first
        wrapper: Any = left[name]
        if not wrapper._get_available_adapters():
            held = wrapper._modules
            model.set_submodule(name, held.get("base_layer", held.get("original_module")))


def auto_mapping(auto: Any) -> Any:
    """The model classes that an Auto class of transformers loads, by the class of their config."""
    return auto._model_mapping


def task_of(auto: str) -> str | None:
    """The first pipeline task whose models an Auto class loads; None if there is none.

    `auto` is the name of the class. For `AutoModel`, whose models have no head, the result is None.
    """
    from transformers.pipelines import SUPPORTED_TASKS

    for task, entry in SUPPORTED_TASKS.items():
        if auto != "AutoModel" and auto in [kind.__name__ for kind in entry["pt"]]:
            return str(task)
    return None


def trainer_holding(state: Any) -> Any:
    """The Trainer to which a Trainer state belongs; None if no Trainer has this state.

    A callback gets the state and not the Trainer, but only the Trainer can log to the services in
    `report_to`. So all objects of the process are searched, once for each state.
    """
    global _last_search
    from transformers import Trainer

    searched, found = (known() for known in _last_search)
    if searched is not state:
        trainers = [entry for entry in gc.get_objects() if issubclass(type(entry), Trainer)]
        found = next((entry for entry in trainers if vars(entry).get("state") is state), None)
        _last_search = weakref.ref(state), _nothing if found is None else weakref.ref(found)
    return found


def _nothing() -> None:
    return None


_last_search: tuple[Callable[[], Any], Callable[[], Any]] = _nothing, _nothing
"""Weak references to the state for which a Trainer was last searched, and to the Trainer that was
found. So the search is not repeated for the same state."""


def mark_loaded(module: nn.Module) -> None:
    """Tell transformers that it must not initialise the tensors of a module."""
    marked: Any = module
    marked._is_hf_initialized = True
    for child in module.modules():
        for tensor in (*child._parameters.values(), *child._buffers.values()):
            if tensor is not None and tensor.device.type != "meta":
                known: Any = tensor
                known._is_hf_initialized = True
