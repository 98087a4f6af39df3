"""The plan of a compression: what happens to each layer, its size, and what its weight loses.

A plan holds plain values, which can be written as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from hf_rmt.plan.field_rules import checked_fields
from hf_rmt.plan.outcomes import SPIKED, Cause, Outcome

NOTABLE_LOSS = 0.01
"""If the mean `dropped_energy` (share of a weight's squared norm that is removed) is larger than
this, a warning tells the user to fine-tune. Rounding the noise (a weight minus its low-rank signal)
to 4 bits causes half of this error, and already changes the outputs of BERT and ViT visibly."""

STATES = {
    Outcome.REPLACED: "compressed",
    Outcome.REWRITTEN: "filtered in place",
    Outcome.KEPT: "dense",
}


@dataclass(frozen=True)
class LayerPlan:
    """What a compression does to one layer with a weight matrix.

    A weight is split into signal and noise. The signal is its directions (singular values with
    their vectors) that stand out, and the noise is the rest. The eigenvalues of a weight are its
    squared singular values, and their list is its spectrum.

    Attributes:
        name: Name of the module in the loaded model, as in `model.get_submodule(name)`.
        shape: Shape of the weight: (out_features, in_features), or (out, in k_h k_w) for a
            convolution with kernels of height k_h and width k_w.
        outcome: Whether the layer is kept, kept with a rewritten weight, or replaced.
        rank: Number of signal directions that are stored, as two low-rank factors.
        noise: How the noise is stored: `drop`, `ternary`, `int4`, `int8` or `keep`.
        phase: Verdict on the spectrum; `hf_rmt.spectra.SpectrumFit` explains each verdict.
        n_spikes: Number of signal directions that were found. If nothing limits the rank, this is
            `rank`.
        upper_edge: Largest eigenvalue that still counts as noise; None if no law (the distribution
            of the eigenvalues of pure noise) was fitted.
        signal_energy: Squared Frobenius norm of the product of the stored factors, divided by that
            of the weight.
        dropped_energy: Squared Frobenius norm of what is removed from the weight on purpose,
            divided by that of the weight. Removed are dropped noise, entries that are set to zero,
            and the amount by which the signal's singular values are reduced, because noise has
            increased them. This and `signal_energy` need not add up to 1, because factors that were
            reduced, or computed from calibration data, are not simply a part of the weight.
        rounding_error: Squared Frobenius norm of the error from rounding the noise to few bits,
            divided by that of the weight. None if nothing is rounded, or if it was not measured.
        bits: Stored bits of the weight: the factors of the signal, and the codes and scales of the
            rounded noise.
        dense_bits: Bits of the dense weight, which is the weight before compression.
        nonzero: Number of stored parameters that are not zero, if a method sets some to zero;
            otherwise None.
        latency: Time of the compressed layer divided by that of the dense layer, measured on this
            machine; None if it was not measured.
        reason: Why the layer stays dense, or what is unusual about the layer; may be empty.
        cause: Why the layer is not replaced, as a `Cause` for use in code. It is empty if the layer
            is replaced, and can be empty if the weight is rewritten.
        kind: Kind of the new layer: `spiked` holds a signal and noise, `ternary` holds one matrix
            of -1, 0 and 1 with scales.
        step: The step activation (a piecewise constant function) that replaces an activation; None
            if there is none. It has `thresholds` and `heights`, the values between thresholds. If
            the activation was a module, `module` is its name. If the model calls a function f as
            its activation, f cannot be removed. The step activation is then put before f, and there
            are four other fields. `function` is the name of f. `values` and `slopes` are the
            outputs and derivatives of f at the heights. `gain` is 1 if the outputs of f can be as
            far apart as they should be; otherwise it is the factor, less than 1, by which their
            distances are reduced.
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
    def state(self) -> str:
        """What the layer is after the compression: `compressed`, `filtered in place` or `dense`.

        A layer that is filtered in place is not compressed, but gets another weight. A dense layer
        stays as it is.
        """
        return STATES[self.outcome]

    @property
    def lost_energy(self) -> float | None:
        """Share of the weight's squared norm that is removed; None if the layer stays as it is."""
        return None if self.outcome is Outcome.KEPT else self.dropped_energy

    @property
    def entries(self) -> int:
        """Number of entries of the weight before compression."""
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per entry of the weight; if it is not compressed, the bits of its dtype."""
        return (self.bits if self.compressed else self.dense_bits) / self.entries

    @property
    def rounds(self) -> bool:
        """Whether the layer's noise (the weight minus the signal) is rounded to few bits."""
        return self.compressed and self.kind == SPIKED and self.noise not in ("drop", "keep")

    @property
    def parameters(self) -> int:
        """Number of stored parameters of the layer's weight.

        In a layer that is not compressed, these are the entries of its weight. In a compressed
        layer, these are the entries of the signal's factors and of the noise (the weight minus the
        signal). If a method sets entries to zero, only the nonzero entries count, even if zeros
        save no memory.
        """
        if self.nonzero is not None:
            return self.nonzero
        if not self.compressed:
            return self.entries
        return self.rank * sum(self.shape) + (self.noise != "drop") * self.entries

    @property
    def parameter_share(self) -> float:
        """Number of stored parameters, divided by the number of entries before compression."""
        return self.parameters / self.entries


@dataclass(frozen=True)
class CompressionPlan:
    """The plans of a model's layers, in the order of the model, and their totals."""

    layers: tuple[LayerPlan, ...]

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def compressed(self) -> tuple[LayerPlan, ...]:
        """The plans of the layers that are replaced by compressed layers."""
        return tuple(layer for layer in self.layers if layer.compressed)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight in the compressed layers; 0 if there are no such layers."""
        weights = sum(layer.entries for layer in self.compressed)
        return sum(layer.bits for layer in self.compressed) / weights if weights else 0.0

    @property
    def size_ratio(self) -> float:
        """Stored bits of the compressed layers, divided by their bits before compression.

        The ratio is 1 if there are no compressed layers.
        """
        dense = sum(layer.dense_bits for layer in self.compressed)
        return sum(layer.bits for layer in self.compressed) / dense if dense else 1.0

    @property
    def parameter_share(self) -> float:
        """Number of stored parameters of all layers, divided by the number before compression."""
        dense = sum(layer.entries for layer in self.layers)
        return sum(layer.parameters for layer in self.layers) / dense if dense else 1.0

    @property
    def in_place(self) -> tuple[LayerPlan, ...]:
        """The plans of the layers that are not compressed, but whose weight is rewritten."""
        return tuple(layer for layer in self.layers if layer.outcome is Outcome.REWRITTEN)

    @property
    def changed(self) -> tuple[LayerPlan, ...]:
        """The plans of the layers that are replaced, or whose weight is rewritten."""
        return tuple(layer for layer in self.layers if layer.outcome is not Outcome.KEPT)

    @property
    def dropped_energy(self) -> float:
        """Mean share of its weight's squared norm that a changed layer loses; 0 if none changed."""
        losses = [layer.dropped_energy for layer in self.changed]
        return sum(losses) / len(losses) if losses else 0.0

    @property
    def rounding_error(self) -> float | None:
        """Mean `LayerPlan.rounding_error` of the compressed layers; None if it is None for all."""
        errors = [x.rounding_error for x in self.compressed if x.rounding_error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def changed_weights(self) -> int:
        """Number of entries, before compression, of the weights that are replaced or rewritten."""
        return sum(layer.entries for layer in self.changed)

    def to_dict(self) -> dict[str, Any]:
        """The fields of each layer as JSON values, by the name of the layer."""
        return {layer.name: _without_name(layer) for layer in self.layers}

    @classmethod
    def from_dict(cls, layers: Mapping[str, Mapping[str, Any]]) -> CompressionPlan:
        """Make a plan from the result of `to_dict`.

        Args:
            layers: The fields of each layer as JSON values, by the name of the layer.

        Raises:
            ValueError: If a layer lacks a field, or has a field that this version does not have or
                whose value is invalid. The error names the layer and the field.
        """
        if not isinstance(layers, Mapping):
            raise ValueError(
                f"config.json, layers must be a mapping of names to fields, got {layers!r}; the "
                "file is damaged, so download or save it again"
            )
        known = {field.name for field in fields(LayerPlan)}
        read = {name: checked_fields(name, entry, known) for name, entry in layers.items()}
        return cls(tuple(LayerPlan(**{"name": name, **values}) for name, values in read.items()))


def _without_name(layer: LayerPlan) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(layer).items() if key != "name"}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
