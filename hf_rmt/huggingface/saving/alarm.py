"""The alarm, a text in a saved config.json; it stops loading where this package is not installed.

If transformers does not know a quantization method, it warns and then loads random weights. To
prevent this, config.json names the alarm as the attention implementation. transformers knows no
such implementation, so it stops with an error that shows the alarm. Where this module is loaded,
the alarm has no effect.

This module is part of `hf_rmt_remote.py`, the code file that is saved with a compressed model.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

ALARM = "this model was compressed by hf_rmt: pip install hf_rmt, then import hf_rmt"
"""The text that a saved config names as its attention implementation, so that loading stops
without this package. It has no slash: with one, transformers would take it for the name of an
attention kernel on the Hub."""
ALARMS = (ALARM, "import hf_rmt")
"""All texts that any version of this package has written as the alarm."""


def without_alarm(value: Any) -> Any:
    """Replace each alarm in `value` by None, and return the result.

    `value` names an attention implementation, or is a dict from parts of a model to such names. An
    alarm is a text in a saved config that stops loading where this package is missing.
    """
    if isinstance(value, dict):
        return {key: without_alarm(entry) for key, entry in value.items()}
    return None if isinstance(value, str) and value in ALARMS else value


def silence_alarm() -> None:
    """Make transformers ignore the alarm, because this package is there.

    The alarm is a text that a saved config names as its attention implementation. Without this
    package, transformers finds no such implementation, and loading fails with this text. With the
    package, a config that holds the alarm counts as one that names no implementation.
    """
    attention: Any = PreTrainedConfig.__dict__["_attn_implementation"]
    if getattr(attention.fset, "reads_alarm", False):
        return

    def choose(config: Any, value: Any) -> None:
        attention.fset(config, without_alarm(value))

    choose.reads_alarm = True  # type: ignore[attr-defined]
    PreTrainedConfig._attn_implementation = attention.setter(choose)
