"""`RMTConfig`: the settings as transformers' quantization config, with what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import getdoc
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_rmt.checks import check_integer
from hf_rmt.settings import CompressionSettings

QUANT_METHOD = "rmt"
FORMAT_VERSION = 1
"""Version of the saved layout; a higher one is refused."""


@dataclass(kw_only=True)
class RMTConfig(CompressionSettings, QuantizationConfigMixin):
    """Compress a transformers model by random matrix theory while it loads.

    `AutoModel.from_pretrained(name, quantization_config=RMTConfig())` splits the weight of every
    attention and MLP layer into its signal, kept as trainable low-rank factors, and its noise,
    kept in 8 bits. All settings are keywords.

    Args:
        layers: What was decided per layer, by runtime name. Filled in by the library.
        base_model: Name of the model that was compressed. Filled in by the library.
        format_version: Layout of the saved tensors. Filled in by the library.
        quant_method: Always "rmt".

    Raises:
        ValueError: If a value is unknown, two contradict each other, or the config was written
            by a newer version.
        TypeError: If a value has the wrong type.

    Examples:
        >>> RMTConfig(noise="drop").recovers_spikes
        True
        >>> RMTConfig.from_dict(RMTConfig(max_rank=8).to_dict()) == RMTConfig(max_rank=8)
        True
    """

    layers: dict[str, dict[str, Any]] | None = None
    base_model: str | None = None
    format_version: int = FORMAT_VERSION
    quant_method: str = QUANT_METHOD

    def __post_init__(self) -> None:
        if self.quant_method != QUANT_METHOD:
            raise ValueError(
                f"quant_method must be {QUANT_METHOD!r} for an RMTConfig, got "
                f"{self.quant_method!r}; use the config class of that method"
            )
        if check_integer("format_version", self.format_version, 1) > FORMAT_VERSION:
            raise ValueError(
                f"this config has format_version {self.format_version}, this hf_rmt reads up to "
                f"{FORMAT_VERSION}; upgrade hf_rmt"
            )
        if not isinstance(self.layers, dict | None):
            raise TypeError(
                f"layers must be a dict that the library filled in, or None, got {self.layers!r}; "
                "target_modules says which layers are compressed"
            )
        super().__post_init__()

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> RMTConfig | tuple[RMTConfig, dict[str, Any]]:
        """Inverse of `to_dict`.

        Args:
            config_dict: Fields of a config.
            return_unused_kwargs: Return keyword arguments that are no fields as well.
            **kwargs: Fields that override those of the mapping.

        Returns:
            The config, with the unused keyword arguments if asked for.

        Raises:
            ValueError: If the mapping has a field that this version does not know.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := set(config_dict) - known:
            raise ValueError(
                f"unknown fields {sorted(unknown)} in a config of quant_method {QUANT_METHOD!r}; "
                f"they are misspelt or written by a newer hf_rmt. Known: {sorted(known)}"
            )
        overrides = {key: value for key, value in kwargs.items() if key in known}
        config = cls(**{**config_dict, **overrides})
        unused = {key: value for key, value in kwargs.items() if key not in known}
        return (config, unused) if return_unused_kwargs else config


def _with_settings(own: str, inherited: str) -> str:
    """A docstring whose arguments begin with those of another."""
    settings = inherited.partition("Args:\n")[2].partition("\n\nRaises:")[0]
    return own.replace("Args:\n", f"Args:\n{settings}\n", 1)


RMTConfig.__doc__ = _with_settings(getdoc(RMTConfig) or "", getdoc(CompressionSettings) or "")
