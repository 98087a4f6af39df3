"""What happens to which layer, and what it costs. Plain values only: JSON in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from hf_rmt.step_record import MOST_STEPS, is_number, is_step

NOTABLE_LOSS = 0.01
"""Dropped energy from which a user is told to expect fine-tuning: 4-bit noise, whose error is half
of that on the trained BERT and ViT, moves the outputs visibly already."""

SPIKED, TERNARY = "spiked", "ternary"
"""Kinds of compressed layers: a low-rank signal with noise, and one ternary matrix."""


class Outcome(StrEnum):
    """What becomes of one layer."""

    KEPT = "kept"
    """The layer stays as it is."""
    REWRITTEN = "rewritten"
    """The layer stays dense and gets another weight."""
    REPLACED = "replaced"
    """A compressed layer takes its place."""


class Cause(StrEnum):
    """Why a layer is not replaced, for code; `LayerPlan.reason` says it in words."""

    NONE = ""
    TOO_SMALL = "too small"
    NOT_NAMED = "not named"
    NOT_FINITE = "not finite"
    ALL_ZERO = "all zero"
    NO_EIGENVALUES = "no eigenvalues"
    DEGENERATE = "degenerate"
    NO_SIGNAL = "no signal"
    DENSE_IS_SMALLER = "dense is smaller"
    NOT_STORABLE = "not storable"
    ZEROS_IN_PLACE = "zeros in place"
    NOT_REACHED = "not reached"
    ALL_WORTH = "all worth"
    READ_BY_PARENT = "read by parent"
    ROUTER = "router"
    CONVERTED = "converted"
    SUBCLASS = "subclass"
    MADE_ANEW = "made anew"
    CARRIES = "carries what cannot be moved"


@dataclass(frozen=True)
class LayerPlan:
    """What was decided for one weight.

    Attributes:
        name: Runtime name of the module, as in `model.get_submodule(name)`.
        shape: (out_features, in_features), of a convolution (out, in k_h k_w).
        outcome: Whether the layer is kept, its weight rewritten, or the layer replaced.
        rank: Number of signal directions stored as factors.
        noise: Noise store: `drop`, `ternary`, `int4`, `int8` or `keep`.
        phase: Verdict on the spectrum, see `hf_rmt.spectra.Phase`.
        n_spikes: Signal directions found; `rank` where nothing limits it.
        upper_edge: Largest eigenvalue that still counts as noise.
        signal_energy: Fraction of the squared Frobenius norm in the stored factors.
        dropped_energy: Fraction of the squared Frobenius norm that is lost.
        rounding_error: Squared Frobenius norm of what packing the noise changes, over that of the
            weight; 0 where nothing is rounded, None where it was not measured.
        bits: Stored bits of the weight: factors, noise codes and scales.
        dense_bits: Bits of the dense weight.
        nonzero: Stored parameters that are not zero, where a method zeroes some; None elsewhere.
        latency: Time of the compressed layer over the dense one, measured here; None if not.
        reason: Why the layer stays dense, or what is unusual about it; may be empty.
        cause: Why the layer is not replaced, as an enumeration; empty for one that is.
        kind: What replaces it: `spiked`, a signal and noise; `ternary`, one ternary matrix.
        step: Of a layer whose activation became a step, its `thresholds` and `heights`, and the
            `module` whose place it takes. Where forward calls the activation as a function instead,
            the `function` that the heights are given to, the `values` that it makes of them, its
            `slopes` there, and `gain`, what the matched heights were multiplied with to be values.
            None elsewhere.
    """

    name: str
    shape: tuple[int, int]
    outcome: Outcome
    rank: int = 0
    noise: str = "keep"
    phase: str = ""
    n_spikes: int = 0
    upper_edge: float | None = None
    signal_energy: float = 0.0
    dropped_energy: float = 0.0
    rounding_error: float | None = None
    bits: int = 0
    dense_bits: int = 0
    nonzero: int | None = None
    latency: float | None = None
    reason: str = ""
    cause: Cause = Cause.NONE
    kind: str = SPIKED
    step: dict[str, Any] | None = None

    @property
    def compressed(self) -> bool:
        """Whether a compressed layer takes the place of the dense one."""
        return self.outcome is Outcome.REPLACED

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of entries of the dense weight."""
        return self.bits / (self.shape[0] * self.shape[1])

    @property
    def rounds(self) -> bool:
        """Whether the noise is stored in few bits, which changes it a little."""
        return self.compressed and self.kind == SPIKED and self.noise not in ("drop", "keep")

    @property
    def parameters(self) -> int:
        """Parameters that are not zero: entries of factors, of a dense weight, of stored noise.

        It counts what methods keep, whether or not a format turns their zeros into memory.
        """
        if self.nonzero is not None:
            return self.nonzero
        entries = self.shape[0] * self.shape[1]
        factors = self.rank * (self.shape[0] + self.shape[1])
        return factors + (self.noise != "drop") * entries if self.compressed else entries

    @property
    def parameter_share(self) -> float:
        """Parameters over the number of entries of the dense weight."""
        return self.parameters / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class CompressionPlan:
    """The layers of a model in their runtime order, and their totals."""

    layers: tuple[LayerPlan, ...]

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def compressed(self) -> tuple[LayerPlan, ...]:
        """The layers that are replaced."""
        return tuple(layer for layer in self.layers if layer.compressed)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over the compressed layers; 0 when there are none."""
        weights = sum(layer.shape[0] * layer.shape[1] for layer in self.compressed)
        return sum(layer.bits for layer in self.compressed) / weights if weights else 0.0

    @property
    def size_ratio(self) -> float:
        """Stored over dense bits of the compressed layers; 1 when there are none."""
        dense = sum(layer.dense_bits for layer in self.compressed)
        return sum(layer.bits for layer in self.compressed) / dense if dense else 1.0

    @property
    def parameter_share(self) -> float:
        """Parameters over those of the dense weights, layers that stay dense included."""
        dense = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return sum(layer.parameters for layer in self.layers) / dense if dense else 1.0

    @property
    def changed(self) -> tuple[LayerPlan, ...]:
        """The layers that are replaced, or whose weight is rewritten."""
        return tuple(layer for layer in self.layers if layer.outcome is not Outcome.KEPT)

    @property
    def dropped_energy(self) -> float:
        """Mean fraction of the squared Frobenius norm that the changed layers lose."""
        losses = [layer.dropped_energy for layer in self.changed]
        return sum(losses) / len(losses) if losses else 0.0

    @property
    def rounding_error(self) -> float | None:
        """Mean rounding error of the compressed layers in which it was measured; None if none."""
        errors = [x.rounding_error for x in self.compressed if x.rounding_error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def changed_weights(self) -> int:
        """Number of entries of the weights that are replaced or filtered in place."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, layer by layer under its name."""
        return {layer.name: _without_name(layer) for layer in self.layers}

    @classmethod
    def from_dict(cls, layers: Mapping[str, Mapping[str, Any]]) -> CompressionPlan:
        """Inverse of `to_dict`.

        Raises:
            ValueError: If a layer lacks a field, has one that this version does not know, or one
                that cannot be; the error names layer and field.
        """
        if not isinstance(layers, Mapping):
            raise ValueError(
                f"config.json, layers must be a mapping of names to fields, got {layers!r}; the "
                "file is damaged, so get it again"
            )
        return cls(tuple(_layer_from(name, entry) for name, entry in layers.items()))


def _layer_from(name: str, entry: object) -> LayerPlan:
    if not isinstance(entry, Mapping):
        raise ValueError(f"config.json, layer {name!r} must be a mapping of fields, got {entry!r}")
    values = dict(entry)
    if (replaced := values.pop("compressed", None)) is not None:  # written before outcomes were
        rewritten = bool(values.get("dropped_energy"))
        values["outcome"] = (Outcome.KEPT, Outcome.REWRITTEN)[rewritten]
        if replaced:
            values["outcome"] = Outcome.REPLACED
    if unknown := set(values) - {field.name for field in fields(LayerPlan)}:
        raise ValueError(
            f"config.json, layer {name!r} has unknown fields {sorted(unknown)}; "
            "it was written by a newer hf_rmt, upgrade the package"
        )
    for key in {"shape", "outcome"} - set(values):
        raise _wrong(name, key, "is missing")
    for key, value in values.items():
        rule, holds = _RULES[key]
        if not holds(value):
            raise _wrong(name, key, f"must be {rule}, got {value!r}")
    values["shape"] = tuple(values["shape"])
    values["outcome"] = Outcome(values["outcome"])
    values["cause"] = Cause(values.get("cause", ""))
    return LayerPlan(**{"name": name, **values})


def _wrong(name: str, key: str, what: str) -> ValueError:
    return ValueError(
        f"config.json, layer {name!r}, field {key!r} {what}; the file is damaged or was changed, "
        "so get it again"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_energy(value: object) -> bool:
    return is_number(value) and value >= -ROUNDING  # type: ignore[operator]


def _is_error(value: object) -> bool:
    return value is None or (is_number(value) and value >= 0)  # type: ignore[operator]


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(_is_count(side) and 0 < side < MOST_SIDE for side in value)
    )


ROUNDING = 1e-6
MOST_SIDE = 2**31
"""Sides of matrices are smaller in any model."""
_COUNT = ("a whole number of at least 0", _is_count)
_ENERGY = ("a number of at least 0", _is_energy)
"""Directions that inputs choose are no orthogonal part of a weight; they may exceed its energy."""
_TEXT = ("a text", lambda value: isinstance(value, str))
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": _TEXT,
    "shape": (f"two whole numbers from 1 to {MOST_SIDE - 1}", _is_shape),
    "outcome": (f"one of {', '.join(Outcome)}", lambda value: value in list(Outcome)),
    "rank": _COUNT,
    "noise": _TEXT,
    "phase": _TEXT,
    "n_spikes": _COUNT,
    "upper_edge": ("a number or null", lambda value: value is None or is_number(value)),
    "signal_energy": _ENERGY,
    "dropped_energy": _ENERGY,
    "bits": _COUNT,
    "dense_bits": _COUNT,
    "rounding_error": ("a number of at least 0, or null", _is_error),
    "nonzero": ("a whole number or null", lambda value: value is None or _is_count(value)),
    "latency": ("a number or null", lambda value: value is None or is_number(value)),
    "reason": _TEXT,
    "cause": ("a cause that is known", lambda value: value in list(Cause)),
    "kind": _TEXT,
    "step": (
        f"null, or module or function, at most {MOST_STEPS} increasing thresholds, one more height "
        "and, with a function, as many values and slopes, none of them 0, and a gain in (0, 1]",
        lambda value: value is None or is_step(value),
    ),
}
"""What the fields of a recorded layer must be."""


def _without_name(layer: LayerPlan) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(layer).items() if key != "name"}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
