"""What this package uses of transformers, peft and torch that they do not document.

Each function is one such touch point. `tests/huggingface/test_compat.py` holds a contract test for
each, so that a new version that breaks one is found by name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_rmt.nn.swap import BOUND_HOOK, CARRIERS


def is_pretrained(model: object) -> bool:
    """Whether a module is a transformers model.

    The class is imported late: this package is imported while transformers is, see
    `hf_rmt.registration`.
    """
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def source_of(model: Any) -> str:
    """The folder or Hub id that a transformers model was loaded from; empty for none."""
    return getattr(model.config, "_name_or_path", "") or ""


def move_accelerate_hook(old: nn.Module, new: nn.Module) -> None:
    """Move the hook that accelerate has put around a module's forward to another module."""
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    hook: Any = getattr(old, BOUND_HOOK)
    remove_hook_from_module(old)
    add_hook_to_module(new, hook)


CARRIERS[BOUND_HOOK] = move_accelerate_hook
