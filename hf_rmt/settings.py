"""What a user can ask for, checked once."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("pdb",)
NOISE_KINDS = ("drop", "ternary", "int4", "int8", "keep")
PACKED_KINDS = ("ternary", "int4", "int8")
STORED_SPIKES = ("all", "paying")


@dataclass(kw_only=True)
class CompressionSettings:
    """How to split weights into signal and noise, and how to store the noise.

    Args:
        method: How the edge between noise and signal is found: `pdb`, the population double bulk.
        noise: How the noise is stored: `int8` (the default; outputs stay as they are), `int4`,
            `ternary`, `keep` (exact, no saving) or `drop` (the noise filter; fine-tune after it).
        noise_removal: Fraction of the noise directions that `drop` removes, smallest first.
        recover_spikes: Replace each signal eigenvalue by the population spike behind it. None:
            only when noise is dropped.
        stored_spikes: `all` spikes become factors, or only the `paying` ones: beside `int8` up to a
            ninth of the directions, beside `int4` and `ternary` those that save at least a quarter
            of the bits they cost. None: paying beside packed noise, all otherwise.
        target_modules: Which linear layers. None: all linears of the repeated blocks, that is
            attention and MLP. A list of names or name endings, a regular expression that matches
            the whole name, or `"all-linear"`.
        modules_to_not_convert: Names or name endings that stay dense whatever else says.
        min_size: Layers whose smaller side is below this stay dense.
        max_rank: Upper bound on the signal directions of a layer; the largest stay. None: no bound.
        seed: For methods that draw random numbers; `pdb` draws none.

    Raises:
        ValueError: If a value is unknown or two contradict each other.
        TypeError: If a value has the wrong type.
    """

    method: str = "pdb"
    noise: str = "int8"
    noise_removal: float = 1.0
    recover_spikes: bool | None = None
    stored_spikes: str | None = None
    target_modules: list[str] | str | None = None
    modules_to_not_convert: list[str] | None = None
    min_size: int = 32
    max_rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("method", self.method, METHODS)
        _choice("noise", self.noise, NOISE_KINDS)
        _number("noise_removal", self.noise_removal, 0.0, 1.0)
        if self.noise != "drop" and self.noise_removal != 1.0:
            raise ValueError(
                f"noise_removal={self.noise_removal} says how much noise to drop, but "
                f"noise={self.noise!r} stores it; set noise='drop' or leave noise_removal at 1.0"
            )
        _optional_bool("recover_spikes", self.recover_spikes)
        if self.stored_spikes is not None:
            _choice("stored_spikes", self.stored_spikes, STORED_SPIKES)
        if self.stored_spikes == "paying" and self.noise not in PACKED_KINDS:
            raise ValueError(
                f"stored_spikes='paying' weighs factors against packed noise, which "
                f"noise={self.noise!r} has none of; set noise to int8, int4 or ternary"
            )
        _integer("min_size", self.min_size, 1)
        if self.max_rank is not None:
            _integer("max_rank", self.max_rank, 0)
        _integer("seed", self.seed, 0)
        _names("modules_to_not_convert", self.modules_to_not_convert)
        if not isinstance(self.target_modules, str):
            _names("target_modules", self.target_modules)

    @property
    def stores_all_spikes(self) -> bool:
        """Whether every spike becomes a factor, and not only the paying ones."""
        if self.stored_spikes is None:
            return self.noise not in PACKED_KINDS
        return self.stored_spikes == "all"

    @property
    def recovers_spikes(self) -> bool:
        """Whether signal eigenvalues are replaced by their population spikes."""
        return self.noise == "drop" if self.recover_spikes is None else self.recover_spikes


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}")


def _integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least {low}, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def _optional_bool(name: str, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or None, got {value!r}")


def _names(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"{name} must be a list of module names, got {value!r}")
    if not value:
        raise ValueError(f"{name} is an empty list, which selects nothing; leave it at None")
