"""What a user can ask for, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from hf_rmt.checks import (
    check_choice,
    check_expression,
    check_integer,
    check_names,
    check_number,
)


@dataclass(frozen=True)
class Method:
    """One row of `METHOD_TABLE`: the code of a method, and the settings that it needs.

    Code is given as `module:function` and imported on first use: settings load no torch.

    Attributes:
        fit: Eigenvalues and a shape in, a `SpectrumFit` out; by default it calls nothing signal.
        takes: The settings that say what is kept, handed on as keywords, to `prune` where there
            is one and else to `fit`. A method that takes none finds a law of the noise.
        refine: Factors and their weight in, the factors that are stored out; empty for none.
        prune: For a method that zeroes entries: the weight in, the new weight out.
        decide: For a method that looks at no spectrum: name, weight and settings in, a
            `CompressedWeight` out.
        only: The settings that no other method takes.
    """

    fit: str = "hf_rmt.spectra.truncation:unsplit"
    takes: tuple[str, ...] = ()
    refine: str = ""
    prune: str = ""
    decide: str = ""
    only: tuple[str, ...] = ()

    @property
    def drops(self) -> bool:
        """Whether what is not kept is lost, so that no noise can be stored beside it."""
        return bool(self.refine or self.prune)


METHOD_TABLE = {
    "pdb": Method("hf_rmt.spectra.fit:fit_double_bulk"),
    "bema": Method("hf_rmt.spectra.unit_bulk:fit_bema"),
    "kernel": Method("hf_rmt.spectra.unit_bulk:fit_kernel"),
    "svd": Method("hf_rmt.spectra.truncation:truncate", ("rank", "energy", "fraction")),
    "slr": Method(
        "hf_rmt.spectra.truncation:truncate",
        ("rank", "fraction"),
        refine="hf_rmt.compression.pruning:sparse_factors",
    ),
    "magnitude": Method(takes=("fraction",), prune="hf_rmt.compression.pruning:largest_entries"),
    "uniform": Method(takes=("fraction",), prune="hf_rmt.compression.pruning:random_entries"),
    "ntk": Method(
        decide="hf_rmt.ternary.weight:ternarize_weight",
        only=("sparsity", "weights", "activation"),
    ),
}
METHODS = tuple(key for key, row in METHOD_TABLE.items() if not row.decide)
"""The methods that look at a spectrum."""
NOISE_KINDS = ("drop", "ternary", "int4", "int8", "keep")
PACKED_KINDS = ("ternary", "int4", "int8")
STORED_SPIKES = ("all", "paying")
SPECTRAL = ("noise", "noise_removal", "recover_spikes", "stored_spikes", "max_rank")
"""Settings of what is told apart by a spectrum, which other methods do not look at."""
WEIGHTS = ("trained", "random")
ACTIVATIONS = ("matched", "keep")


@dataclass(kw_only=True)
class CompressionSettings:
    """How to split weights into signal and noise, and how to store the noise.

    Args:
        method: How signal and noise are told apart: `pdb`, the population double bulk; `bema` and
            `kernel`, two fits of the unit bulk. Without a law: `svd` keeps the largest directions,
            `slr` as well, and zeroes part of the factors for weak rows and columns; `magnitude`
            keeps the largest entries, `uniform` random ones. Zeros are stored and count as bits;
            `LayerPlan.parameters` leaves them out. `ntk` makes the linears of a head ternary and
            their activations steps, with the kernel of the dense head in the limit of large widths.
        rank: For `svd`, `slr`: how many directions are kept, of a smaller layer all. One of rank,
            energy and fraction must be given where a method takes it, and none elsewhere.
        energy: For `svd`: the least directions with this share of the squared Frobenius norm are
            kept, in (0, 1].
        fraction: For `svd`, `slr`: the share of a layer's directions that is kept, in (0, 1]; for
            `magnitude`, `uniform` the share of its entries.
        sparsity: For `ntk`: share of zeros in each row of a ternary weight, in [0, 1); None for
            that of least error, or of 1/3 where weights are random.
        weights: For `ntk`: `trained` ones made ternary, or `random` ones of their scale in the
            hidden layers; those keep nothing of the training, which calibration must then put
            into the last layer.
        activation: For `ntk`: `matched` by a step of the same Gaussian moments where it is a
            module beside its linear, or `keep`.
        noise: How the noise is stored: `int8` (the default; outputs stay as they are), `int4`,
            `ternary`, `keep` (exact, no saving) or `drop` (the noise filter; fine-tune after it).
        noise_removal: Fraction of the noise directions that `drop` removes, smallest first. A
            dict gives each layer, by runtime name, its own; a layer it does not name stays dense.
            At 1 a layer without spikes stays dense too: nothing would be left of it.
        recover_spikes: Replace each signal eigenvalue by the population spike behind it. None:
            only when noise is dropped.
        stored_spikes: `all` spikes become factors, or only the `paying` ones: beside `int8` up to a
            ninth of the directions, beside `int4` and `ternary` those that save at least a quarter
            of the bits they cost. None: paying beside packed noise where a law found the spikes,
            all otherwise.
        target_modules: Which layers. None: all linears of the repeated blocks, that is attention
            and MLP; the convolutions of the blocks where those hold no linear (ResNet's stages);
            where nothing repeats, every linear and convolution but the last, which is the head,
            and a convolution that comes first and reads the input. A list of names or name
            endings, a regular expression that matches the whole name, or `"all-linear"`; names
            choose convolutions anywhere. Grouped and transposed ones stay dense. None means the
            head for `ntk`: the linears after the blocks but for the output embedding.
        modules_to_not_convert: Names or name endings that stay dense whatever else says.
        min_size: Layers whose smaller side is below this stay dense; the sides of a convolution
            are out and in k_h k_w. `ntk` takes layers of any size.
        max_rank: Upper bound on the signal directions of a layer; the largest stay. None: no bound.
        seed: For methods that draw random numbers: `uniform`, and `ntk` with random weights.

    Raises:
        ValueError: If a value is unknown or two contradict each other.
        TypeError: If a value has the wrong type.
    """

    method: str = "pdb"
    rank: int | None = None
    energy: float | None = None
    fraction: float | None = None
    sparsity: float | None = None
    weights: str = "trained"
    activation: str = "matched"
    noise: str = "int8"
    noise_removal: float | dict[str, float] = 1.0
    recover_spikes: bool | None = None
    stored_spikes: str | None = None
    target_modules: list[str] | str | None = None
    modules_to_not_convert: list[str] | None = None
    min_size: int = 32
    max_rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(METHOD_TABLE))
        check_choice("noise", self.noise, NOISE_KINDS)
        self._check_kept()
        self._check_ternary()
        self._check_removal()
        if not isinstance(self.recover_spikes, bool | None):
            raise TypeError(f"recover_spikes must be a bool or None, got {self.recover_spikes!r}")
        if self.stored_spikes is not None:
            check_choice("stored_spikes", self.stored_spikes, STORED_SPIKES)
        if self.stored_spikes == "paying" and self.noise not in PACKED_KINDS:
            raise ValueError(
                f"stored_spikes='paying' weighs factors against packed noise, which "
                f"noise={self.noise!r} has none of; set noise to int8, int4 or ternary"
            )
        self.min_size = check_integer("min_size", self.min_size, 1)
        if self.max_rank is not None:
            self.max_rank = check_integer("max_rank", self.max_rank, 0)
        self.seed = check_integer("seed", self.seed, 0)
        self.modules_to_not_convert = check_names(
            "modules_to_not_convert", self.modules_to_not_convert
        )
        if isinstance(self.target_modules, str):
            check_expression("target_modules", self.target_modules)
        else:
            self.target_modules = check_names("target_modules", self.target_modules)

    def _check_kept(self) -> None:
        """What is kept must be said as the method takes it, once."""
        row = METHOD_TABLE[self.method]
        given = [key for key in ("rank", "energy", "fraction") if getattr(self, key) is not None]
        for key in given:
            value = getattr(self, key)
            whole = key == "rank"
            number = check_integer(key, value, 1) if whole else check_number(key, value, "(0")
            setattr(self, key, number)
        if stray := [key for key in given if key not in row.takes]:
            users = ", ".join(key for key, other in METHOD_TABLE.items() if stray[0] in other.takes)
            raise ValueError(
                f"{stray[0]}={getattr(self, stray[0])} is not for method={self.method!r}, which "
                f"takes {', '.join(row.takes) or 'none of rank, energy, fraction'}; leave it at "
                f"None or choose among {users}"
            )
        if row.takes and len(given) != 1:
            raise ValueError(
                f"method={self.method!r} needs {' or '.join(row.takes)}, exactly one, to say what "
                f"is kept, got {' and '.join(given) or 'none'}; set one"
            )
        if row.drops and self.noise != "drop":
            raise ValueError(
                f"method={self.method!r} throws away what it does not keep, but noise="
                f"{self.noise!r} would store it; set noise='drop'"
            )
        if row.takes and self.recover_spikes:
            raise ValueError(
                f"recover_spikes=True needs a law of the noise, and method={self.method!r} fits "
                "none; leave it at None"
            )

    def _check_ternary(self) -> None:
        """What belongs to ternary heads goes with them alone, and the other way round."""
        check_choice("weights", self.weights, WEIGHTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        if self.sparsity is not None:
            self.sparsity = check_number("sparsity", self.sparsity, high="1)")
        defaults = {entry.name: entry.default for entry in fields(CompressionSettings)}
        row = METHOD_TABLE[self.method]
        owned = {key for other in METHOD_TABLE.values() for key in other.only}
        foreign = set(SPECTRAL) if row.decide else owned - set(row.only)
        for key in sorted(foreign):
            if getattr(self, key) != defaults[key]:
                raise ValueError(
                    f"{key}={getattr(self, key)!r} means nothing to method={self.method!r}; leave "
                    f"it at {defaults[key]!r}"
                )

    def _check_removal(self) -> None:
        removal = self.noise_removal
        by_layer = dict(removal) if isinstance(removal, Mapping) else {"": removal}
        for name, value in by_layer.items():
            if not isinstance(name, str):
                raise TypeError(f"noise_removal must have layer names as keys, got {name!r}")
            key = f"noise_removal[{name!r}]" if name else "noise_removal"
            by_layer[name] = check_number(key, value)
        removal = self.noise_removal = by_layer if isinstance(removal, Mapping) else by_layer[""]
        if not by_layer:
            raise ValueError(
                "noise_removal={} names no layer, so nothing would be compressed; leave it at 1.0"
            )
        if removal == 1.0:
            return
        if self.noise != "drop":
            raise ValueError(
                f"noise_removal={removal} says how much noise to drop, but "
                f"noise={self.noise!r} stores it; set noise='drop' or leave noise_removal at 1.0"
            )
        if METHOD_TABLE[self.method].drops and set(by_layer.values()) != {1.0}:
            raise ValueError(
                f"noise_removal={removal} grades directions, but method={self.method!r} drops all "
                "that it does not keep; use rank or fraction, and leave noise_removal at 1.0"
            )

    def removal(self, name: str) -> float | None:
        """Fraction of a layer's noise to remove; None for a layer that is to stay as it is."""
        if isinstance(self.noise_removal, Mapping):
            return self.noise_removal.get(name)
        return self.noise_removal

    def layers_named(self) -> set[str]:
        """Layers whose noise removal is given one by one; none where it is one number for all."""
        return set(self.noise_removal) if isinstance(self.noise_removal, Mapping) else set()

    @property
    def stores_all_spikes(self) -> bool:
        """Whether every spike becomes a factor, and not only the paying ones.

        The directions of a method that is told what to keep are all stored unless asked otherwise.
        """
        if self.stored_spikes is None:
            return self.noise not in PACKED_KINDS or bool(METHOD_TABLE[self.method].takes)
        return self.stored_spikes == "all"

    @property
    def recovers_spikes(self) -> bool:
        """Whether signal eigenvalues are replaced by their population spikes."""
        if METHOD_TABLE[self.method].takes:
            return False
        return self.noise == "drop" if self.recover_spikes is None else self.recover_spikes
