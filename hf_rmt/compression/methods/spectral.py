"""The options and decisions of all methods that look at the squared singular values of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_rmt.checks import check_choice, check_integer, check_number
from hf_rmt.settings import (
    NOISE_KINDS,
    PACKED_KINDS,
    CompressionSettings,
    Method,
    Option,
    method_of,
    spectral_methods,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hf_rmt.compression.decision import Decision
    from hf_rmt.compression.spectrum import Decomposition
    from hf_rmt.report import CompressionReport
    from hf_rmt.spectra import SpectrumFit

STORED_SPIKES = ("all", "paying")


def _noise(name: str, value: Any) -> str:
    check_choice(name, value, NOISE_KINDS)
    return str(value)


def _stored_spikes(name: str, value: Any) -> str | None:
    if value is not None:
        check_choice(name, value, STORED_SPIKES)
    return None if value is None else str(value)


def _flag(name: str, value: Any) -> bool | None:
    if not isinstance(value, bool | None):
        raise TypeError(f"{name} must be True, False or None, got {value!r}")
    return value


def _removal(name: str, value: Any) -> float | dict[str, float]:
    if not isinstance(value, Mapping):
        return check_number(name, value)
    if not value:
        raise ValueError(
            f"{name}={value!r} names no layer, so nothing would be compressed; pass a fraction for "
            "each layer, or 1.0 for all layers"
        )
    for layer in value:
        if not isinstance(layer, str):
            raise TypeError(f"{name} must have layer names as keys, got {layer!r}")
    return {layer: check_number(f"{name}[{layer!r}]", part) for layer, part in value.items()}


NOISE = Option(
    "noise",
    "int8",
    _noise,
    "How the noise is stored: int8 (the default; outputs stay as they are), int4, ternary, keep "
    "(exact, saves nothing) or drop (the noise is removed: for tuned models with calibration and "
    "size, for networks trained from nothing, or if training follows).",
    choices=NOISE_KINDS,
)
NOISE_REMOVAL = Option(
    "noise_removal",
    1.0,
    _removal,
    "Fraction of the noise directions that noise=drop removes, smallest first. A dict gives a "
    "fraction for each layer name; a layer that is not in the dict stays dense. With 1, a layer "
    "without spikes (directions of signal) stays dense too, because nothing of it would remain.",
    parse=float,
)
RECOVER_SPIKES = Option(
    "recover_spikes",
    None,
    _flag,
    "Whether to shrink the eigenvalues of the signal to their sizes without noise (the population "
    "spikes), because noise makes them larger. None: only if the noise is dropped and calibration "
    "does not choose the directions.",
    parse=bool,
)
STORED_SPIKES_OPTION = Option(
    "stored_spikes",
    None,
    _stored_spikes,
    "Which spikes (directions of signal) become factors; other spikes are stored with the noise. "
    "`all`: every spike. `paying`: the largest spikes, at most a ninth of all directions; with "
    "int4 and ternary only spikes that save at least a quarter of the bits that they cost. None: "
    "`paying` if the noise is int8, int4 or ternary and the method fits a law, else `all`.",
    choices=STORED_SPIKES,
)
MAX_RANK = Option(
    "max_rank",
    None,
    lambda name, value: None if value is None else check_integer(name, value, 0),
    "Upper bound on the number of signal directions of a layer; the largest directions stay. 0: "
    "everything counts as noise. None: no bound.",
    parse=int,
)
MIN_SIZE = Option(
    "min_size",
    32,
    lambda name, value: check_integer(name, value, 1),
    "A layer stays dense if the smaller side of its weight is below this number. The sides of a "
    "convolution are its output channels, and its input channels times the height and width of the "
    "kernel.",
    parse=int,
)
SPECTRAL_OPTIONS = (NOISE, NOISE_REMOVAL, RECOVER_SPIKES, STORED_SPIKES_OPTION, MAX_RANK, MIN_SIZE)


def spectral_method_of(settings: CompressionSettings) -> SpectralMethod:
    """The method that the settings name; it must split a spectrum into signal and noise.

    The spectrum of a weight is the list of its squared singular values. `hf_rmt.spectra` explains
    signal and noise.

    Raises:
        TypeError: If the method does not look at a spectrum.
    """
    method = method_of(settings)
    if not isinstance(method, SpectralMethod):
        raise TypeError(
            f"method={settings.method!r} looks at no spectrum; choose among "
            f"{', '.join(spectral_methods())}"
        )
    return method


class SpectralMethod(Method):
    """A method that splits the squared singular values of a weight into signal and noise.

    The values that stand out are the signal, and all others are the noise; see `hf_rmt.spectra`.

    Attributes:
        finds_law: Whether the method fits a law (the distribution of the squared singular values of
            pure noise). Only such a method decides by itself how much of a weight is signal. Only
            such a method can shrink the singular values of the signal to their sizes without noise.
        stores_noise: Whether noise can be stored beside the signal. If not, the noise is lost.
        chooses_directions: Whether the method keeps directions (singular values with their vectors)
            of a weight, not single entries.
    """

    options: tuple[Option, ...] = SPECTRAL_OPTIONS
    reads_spectrum = True
    finds_law: bool = True
    stores_noise: bool = True
    chooses_directions: bool = True

    def fit(
        self, eigenvalues: NDArray[Any], shape: tuple[int, int], settings: CompressionSettings
    ) -> SpectrumFit:
        """Split the squared singular values of a weight into signal and noise.

        Args:
            eigenvalues: The squared singular values, descending, shape (min(shape),).
            shape: Shape of the weight.
            settings: The method and its options.

        Returns:
            Which values are signal and which are noise; see `SpectrumFit`.

        Raises:
            NotImplementedError: If the class of the method does not define `fit`.
        """
        raise NotImplementedError(
            f"method {self.name!r} does not say how a spectrum is split; define fit in its class"
        )

    def check(self, settings: Any) -> None:
        """Raise a `ValueError` if options in `settings` contradict each other."""
        super().check(settings)
        noise, removal = settings.noise, settings.noise_removal
        if not self.stores_noise and noise != "drop":
            raise ValueError(
                f"method={self.name!r} throws away what it does not keep, but noise={noise!r} "
                "would store it; set noise='drop'"
            )
        if not self.finds_law and settings.recover_spikes:
            raise ValueError(
                "recover_spikes=True needs a method that fits a law to the noise, and method="
                f"{self.name!r} fits none; leave recover_spikes at None"
            )
        if settings.stored_spikes == "paying" and noise not in PACKED_KINDS:
            raise ValueError(
                f"stored_spikes='paying' compares factors with packed noise, and noise={noise!r} "
                "is not packed; set noise to int8, int4 or ternary"
            )
        if removal != 1.0 and noise != "drop":
            raise ValueError(
                f"noise_removal={removal} says how much noise to drop, but noise={noise!r} stores "
                "it; set noise='drop' or leave noise_removal at 1.0"
            )
        graded = removal.values() if isinstance(removal, Mapping) else [removal]
        if not self.stores_noise and set(graded) != {1.0}:
            raise ValueError(
                f"noise_removal={removal} drops only a part of the noise directions, but "
                f"method={self.name!r} drops all that it does not keep; use rank or fraction, and "
                "leave noise_removal at 1.0"
            )

    def accepts(self, module: Any) -> bool:
        """Whether a module is a linear layer or a plain convolution, as `has_matrix` defines it."""
        from hf_rmt.nn.dense_matrix import has_matrix

        return has_matrix(module)

    def default_targets(self, layers: Mapping[str, Any], model: Any) -> list[str]:
        """Names of the layers to compress by default; for the rule see `TARGET_MODULES`."""
        from hf_rmt.compression.targets.blocks import of_blocks

        return of_blocks(layers, model)

    def why_no_default(self) -> str:
        """A text for an error message: why `default_targets` finds no layer in a model."""
        return (
            "by default all its layers stay dense, because its last layer counts as the head, and "
            "a first convolution as the layer that reads the input"
        )

    def decide(self, name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        """Decide what happens to one weight, after its singular values are split.

        They are split into signal and noise; see `hf_rmt.spectra`. `Method.decide` explains the
        arguments and the result.
        """
        from hf_rmt.compression.decision import Decision
        from hf_rmt.compression.weight import split_weight

        found = split_weight(name, weight, settings)
        return found if isinstance(found, Decision) else self.cut(name, weight, found, settings)

    def cut(
        self,
        name: str,
        weight: Tensor,
        found: Decomposition,
        settings: CompressionSettings,
        kept: Tensor | None = None,
    ) -> Decision:
        """Decide what happens to a weight after its singular value decomposition.

        Args:
            name: Name of the module in `model.named_modules()`.
            weight: Shape (out, in).
            found: The singular values, split into signal and noise, with their vectors; see
                `Decomposition`.
            settings: The method and its options.
            kept: Positions of the directions (singular values with their vectors) to keep, shape
                (rank,); None for those that `choose_directions` returns.

        Returns:
            The `Decision`: keep the layer, rewrite its weight, or replace the layer.
        """
        from hf_rmt.compression.decision import Decision
        from hf_rmt.compression.weight import choose_directions, keep_directions

        chosen = choose_directions(name, weight, found, settings) if kept is None else kept
        if isinstance(chosen, Decision):
            return chosen
        return keep_directions(name, weight, found, chosen, settings)

    def compress_model(
        self,
        model: Any,
        names: Sequence[str],
        settings: CompressionSettings,
        *,
        calibration: Iterable[Mapping[str, Any]] | None = None,
        size: float | None = None,
        dry_run: bool = False,
    ) -> CompressionReport:
        """Compress layers of a model in place.

        `calibration` holds batches of data, on which the outputs of the layers shall change little.
        Without it, only the weights are used. `Method.compress_model` explains all arguments.
        """
        if calibration is not None:
            from hf_rmt.compression.calibration.calibrated import compress_calibrated

            return compress_calibrated(
                model, names, settings, calibration, size=size, dry_run=dry_run
            )
        if size is not None:
            raise ValueError(
                f"size={size} needs calibration, which decides the size of each layer; pass "
                "calibration=batches"
            )
        from hf_rmt.compression.apply import compress_shared

        return compress_shared(model, names, settings, dry_run=dry_run)
