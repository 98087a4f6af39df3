"""The alarm in a saved config.json, which stops whoever loads the model without this package.

transformers warns of a quantization method that it does not know, and then loads random weights.
So config.json names an attention implementation that does not exist: transformers refuses it, and
its error shows the words. Wherever this code is at hand, the words mean nothing.

A repository that was pushed carries this file.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

ALARM = "this model was compressed by hf_rmt: pip install hf_rmt, then import hf_rmt"
"""Saved as the attention implementation of config.json; without a slash, which names a kernel."""
ALARMS = (ALARM, "import hf_rmt")
"""All that were ever written."""


def without_alarm(value: Any) -> Any:
    """An attention implementation, or one for each part of a model, without the alarm."""
    if isinstance(value, dict):
        return {key: without_alarm(entry) for key, entry in value.items()}
    return None if isinstance(value, str) and value in ALARMS else value


def silence_alarm() -> None:
    """Make every config of transformers read the alarm as no choice of an implementation."""
    attention: Any = PreTrainedConfig.__dict__["_attn_implementation"]
    if getattr(attention.fset, "reads_alarm", False):
        return

    def choose(config: Any, value: Any) -> None:
        attention.fset(config, without_alarm(value))

    choose.reads_alarm = True  # type: ignore[attr-defined]
    PreTrainedConfig._attn_implementation = attention.setter(choose)
