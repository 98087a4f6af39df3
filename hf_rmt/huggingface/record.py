"""What a saved model records of its compression: the half of the config that loading needs.

A repository that was pushed carries this file, so it must not import the methods.
"""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_rmt.checks import check_integer

QUANT_METHOD = "rmt"
FORMAT_VERSION = 1
"""Version of the saved layout; a higher one is refused."""


class CompressionRecord(QuantizationConfigMixin):
    """The record of a compressed model, with its settings as they were written.

    Args:
        layers: What was decided per layer, by runtime name.
        base_model: Name of the model that was compressed.
        size: Share of the layers' parameters that was asked for, if any.
        calibrated: Whether batches of inputs were used.
        format_version: Layout of the saved tensors.
        quant_method: Always "rmt".
        **settings: What the user had asked for; kept as it is.

    Raises:
        ValueError: If the record belongs to another method, or a newer version wrote it.
        TypeError: If a value has the wrong type.
    """

    def __init__(
        self,
        *,
        layers: dict[str, dict[str, Any]] | None = None,
        base_model: str | None = None,
        size: float | None = None,
        calibrated: bool = False,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        **settings: Any,
    ) -> None:
        if quant_method != QUANT_METHOD:
            raise ValueError(
                f"quant_method must be {QUANT_METHOD!r} for an RMTConfig, got {quant_method!r}; "
                "use the config class of that method"
            )
        if check_integer("format_version", format_version, 1) > FORMAT_VERSION:
            raise ValueError(
                f"this config has format_version {format_version}, this hf_rmt reads up to "
                f"{FORMAT_VERSION}; upgrade hf_rmt"
            )
        if not isinstance(layers, dict | None):
            raise TypeError(
                f"layers must be a dict that the library filled in, or None, got {layers!r}; "
                "target_modules says which layers are compressed"
            )
        self.__dict__.update(settings)
        self.layers, self.base_model = layers, base_model
        self.size, self.calibrated = size, calibrated
        self.format_version, self.quant_method = format_version, quant_method
