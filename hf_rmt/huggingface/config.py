"""`RMTConfig`, a quantization config of transformers: the settings and the decisions per layer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from inspect import getdoc
from typing import Any, Self

from hf_rmt.checks import check_choice
from hf_rmt.huggingface.saving.record import FORMAT_VERSION, QUANT_METHOD, CompressionRecord
from hf_rmt.nn.layouts import ACTIVATIONS, CHOICES, LAYOUTS
from hf_rmt.settings import CompressionSettings, Option, all_options, methods

RECORDED = ("layers", "base_model", "size", "calibrated", "format_version", "quant_method")
OF_COMPRESS = ("size", "calibrated")
OF_FILES = ("digest", "files", "code")
"""Fields of a config that the library fills in, not the user. Those of `OF_COMPRESS` come from the
arguments of `compress`, and those of `OF_FILES` describe the files that are saved with the
config."""
IN_MEMORY = ("layout", "activations")
"""Fields of a config that say how a loaded model lies in memory; saved files are the same for all
values."""
PER_LINE = 88


class _Fields:
    """A descriptor for the dataclass fields of `RMTConfig`, with the options of all methods.

    The fields of the base class lack these options. With those fields, `dataclasses.replace` and
    `asdict` would lose every option without an error.
    """

    def __get__(self, instance: object, owner: type) -> dict[str, dataclasses.Field[Any]]:
        names = ("method", *all_options(), *RECORDED, *OF_FILES, *IN_MEMORY)
        described: Any = dataclasses.make_dataclass("Described", names)
        return dict(described.__dataclass_fields__)


class RMTConfig(CompressionSettings, CompressionRecord):
    """Compress a transformers model by random matrix theory while it loads.

    `AutoModel.from_pretrained(name, quantization_config=RMTConfig())` splits the weight of every
    attention and MLP layer into its signal, kept as trainable low-rank factors, and its noise,
    kept in 8 bits. All settings are keyword arguments.

    Args:
        layers: The decision on each layer, by its name in the model. Filled in by the library.
        base_model: Name of the model that was compressed. Filled in by the library.
        size: The share of parameters that `compress` had to keep. Filled in by the library.
        calibrated: Whether `compress` had calibration batches. Filled in by the library.
        format_version: Version of the format of the saved files. Filled in by the library.
        digest: Digest of `layers` as they were saved. Filled in by the library.
        files: SHA-256 of each file with weights, by file name. Filled in by the library.
        code: Digest of the code file that is saved with the weights. Filled in by the library.
        quant_method: Always "rmt".
        layout: How the weights lie in memory after loading, as in `hf_rmt.set_layout`: `packed`,
            `int8`, `dense`, `fused`, `fastest` or `smallest`. It is not saved.
        activations: How the layout `int8` rounds its inputs: to `int8`, or to `int16`, which is
            nearly exact. It is not saved.

    Raises:
        ValueError: If a value is unknown, two values contradict each other, or the config was
            written by a newer version.
        TypeError: If a value has the wrong type.

    Examples:
        >>> RMTConfig(noise="drop").noise_removal
        1.0
        >>> RMTConfig.from_dict(RMTConfig(max_rank=8).to_dict()) == RMTConfig(max_rank=8)
        True
    """

    __dataclass_fields__ = _Fields()

    def __init__(
        self,
        *,
        method: str = "pdb",
        layout: str = "packed",
        activations: str = "int8",
        **options: Any,
    ) -> None:
        check_choice("layout", layout, (*LAYOUTS, *CHOICES))
        check_choice("activations", activations, ACTIVATIONS)
        self._fill(method, options)
        self.layout, self.activations = layout, activations

    def _fill(self, method: str, options: dict[str, Any]) -> None:
        recorded = {key: options.pop(key) for key in (*RECORDED, *OF_FILES) if key in options}
        if recorded.get("layers") is None:
            _check_not_of_compress(recorded)
        elif method not in methods():
            # the method belongs to a package that is not imported; loading needs only the layers
            CompressionRecord.__init__(self, method=method, **options, **recorded)
            return
        CompressionSettings.__init__(self, method=method, **options)
        CompressionRecord.__init__(self, **vars(self), **recorded)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values: the method, its options, and what the library filled in."""
        settings = {**vars(self)} if self.method not in methods() else super().to_dict()
        recorded = {key: getattr(self, key) for key in (*RECORDED, *OF_FILES)}
        kept = {key: recorded[key] for key in recorded if key in RECORDED or recorded[key]}
        unsaved = {*OF_FILES, *IN_MEMORY}
        settings = {key: value for key, value in settings.items() if key not in unsaved}
        return copy.deepcopy(settings | kept)

    def get_loading_attributes(self) -> dict[str, Any]:
        """The options that also have an effect when an already compressed model is loaded."""
        return {key: getattr(self, key) for key in IN_MEMORY}

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed; all values are checked again."""
        filled = {} if self.layers is not None else {key: getattr(self, key) for key in OF_COMPRESS}
        unset = dict.fromkeys(filled)
        made = super().replace(**{**self.get_loading_attributes(), **unset, **changes})
        for key, value in filled.items():
            setattr(made, key, changes.get(key, value))
        return made

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> RMTConfig | tuple[RMTConfig, dict[str, Any]]:
        """Make a config from its fields, such as those that `to_dict` returns.

        Args:
            config_dict: The fields of a config, by name.
            return_unused_kwargs: Whether to return also the keyword arguments that are not fields.
            **kwargs: Values that override those in `config_dict`.

        Returns:
            The config. With `return_unused_kwargs`: the config and the unused keyword arguments.

        Raises:
            ValueError: If the mapping has a field that this version does not know.
        """
        known = {"method", *all_options(), *RECORDED, *OF_FILES, *IN_MEMORY}
        foreign = config_dict.get("layers") and config_dict.get("method", "pdb") not in methods()
        if (unknown := set(config_dict) - known) and not foreign:
            raise ValueError(
                f"unknown fields {sorted(unknown)} in a config of quant_method {QUANT_METHOD!r}; "
                "they are misspelled, or a newer hf_rmt wrote them: correct them or upgrade. "
                f"Known: {sorted(known)}"
            )
        overrides = {key: value for key, value in kwargs.items() if key in known}
        config = cls(**{**config_dict, **overrides})
        unused = {key: value for key, value in kwargs.items() if key not in known}
        return (config, unused) if return_unused_kwargs else config


def _described(options: Mapping[str, Option]) -> str:
    """Lines for the `Args:` section of a docstring: the name and the help of each option.

    They are added to the docstring of `RMTConfig` at import.
    """
    from textwrap import fill

    rows = [f"method: One of {', '.join(methods())}; see `hf_rmt.settings.methods()`."]
    rows += [f"{name}: {option.help}" for name, option in options.items()]
    return "\n".join(
        fill(row, PER_LINE, initial_indent="    ", subsequent_indent="        ") for row in rows
    )


RMTConfig.__doc__ = (getdoc(RMTConfig) or "").replace(
    "Args:\n", f"Args:\n{_described(all_options())}\n", 1
)

__all__ = ["FORMAT_VERSION", "QUANT_METHOD", "RMTConfig"]


def _check_not_of_compress(recorded: Mapping[str, Any]) -> None:
    """Refuse `size` and `calibrated` in a new config, because only the library fills them in.

    Raises:
        ValueError: If one of the two is given.
    """
    for name in (name for name in OF_COMPRESS if recorded.get(name)):
        raise ValueError(
            f"{name}={recorded[name]!r} is no option of RMTConfig: the field {name} only records "
            "what hf_rmt.compress did; pass the arguments size and calibration to hf_rmt.compress"
        )
