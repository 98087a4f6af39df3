"""The alarm in a saved config.json; it stops loading where this package is not installed.

If transformers does not know a quantization method, it warns and then loads random weights. So
config.json names an attention implementation that does not exist. Transformers refuses it, and the
error shows the text of the alarm. Where this code is loaded, the text has no effect.

This module is part of the code file of every pushed repository.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

ALARM = "this model was compressed by hf_rmt: pip install hf_rmt, then import hf_rmt"
"""Saved as the attention implementation in config.json; a slash in it would name a kernel."""
ALARMS = (ALARM, "import hf_rmt")
"""All alarms that any version of this package has written."""


def without_alarm(value: Any) -> Any:
    """An attention implementation, or one for each part of a model, without the alarm."""
    if isinstance(value, dict):
        return {key: without_alarm(entry) for key, entry in value.items()}
    return None if isinstance(value, str) and value in ALARMS else value


def silence_alarm() -> None:
    """Make every config of transformers treat the alarm as if no implementation was chosen."""
    attention: Any = PreTrainedConfig.__dict__["_attn_implementation"]
    if getattr(attention.fset, "reads_alarm", False):
        return

    def choose(config: Any, value: Any) -> None:
        attention.fset(config, without_alarm(value))

    choose.reads_alarm = True  # type: ignore[attr-defined]
    PreTrainedConfig._attn_implementation = attention.setter(choose)
