"""The record of a compression in the config of a saved model: what loading needs to know.

This module is part of `hf_rmt_remote.py`, the code file that is saved with a compressed model. So
it must not import the modules that compress.
"""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_rmt.checks import check_integer

QUANT_METHOD = "rmt"
REMOTE_MODULE = "hf_rmt_remote"
"""Name, without ".py", of the code file that is saved with a compressed model."""
OWN_CONFIG = "own AutoConfig"
"""Key of `auto_map` in config.json for a user's own config class. The usual key, `AutoConfig`,
names a class of the code file."""
FORMAT_VERSION = 1
"""Version of the format of the saved files; a higher version is refused."""


class CompressionRecord(QuantizationConfigMixin):
    """The `quantization_config` of a compressed model: its settings and how each layer was changed.

    Args:
        layers: The decision on each layer, by its name in the model.
        base_model: Name of the model that was compressed.
        size: Share of the layers' parameters that the user asked `compress` to keep, if any.
        calibrated: Whether `compress` had calibration batches.
        format_version: Version of the format of the saved files.
        digest: Digest of `layers` as they were written.
        files: SHA-256 of each file with weights, by file name.
        code: Digest of the code file that was written into the same folder.
        quant_method: Always "rmt".
        **settings: The settings of the user; they are stored unchanged.

    Raises:
        ValueError: If the record is of another quantization method, or a newer version wrote it.
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
        digest: str | None = None,
        files: dict[str, str] | None = None,
        code: str | None = None,
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
        self.digest, self.files, self.code = digest, files, code

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field by its name, because transformers may read a config like a dict."""
        return getattr(self, key, default)


def is_record(value: Any) -> bool:
    """Whether a `quantization_config`, a dict or an object, belongs to this package."""
    method = value.get("quant_method") if isinstance(value, dict) else value
    return getattr(method, "quant_method", method) == QUANT_METHOD


def sub_configs(config: Any) -> dict[str, Any]:
    """The configs of the parts of a model, by the names of these parts in the model's config."""
    named = {key: getattr(config, key, None) for key in getattr(config, "sub_configs", {})}
    return {key: part for key, part in named.items() if part is not None}


def drop_records(config: Any, *, parts_only: bool = False) -> None:
    """Remove from a config, and from the configs in it, what this package has added.

    This is `quantization_config`, which says how each layer was compressed, and the entry of
    `auto_map` that names the file `REMOTE_MODULE`. With `parts_only`, only the configs inside are
    changed.
    """
    if not parts_only and is_record(config.__dict__.get("quantization_config")):
        del config.quantization_config
    if not parts_only and isinstance(config.__dict__.get("auto_map"), dict):
        others = {k: v for k, v in config.auto_map.items() if REMOTE_MODULE not in str(v)}
        if OWN_CONFIG in others:
            others["AutoConfig"] = others.pop(OWN_CONFIG)
        del config.auto_map
        if others:
            config.auto_map = others
    for part in sub_configs(config).values():
        drop_records(part)
