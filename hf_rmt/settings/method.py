"""The base class of all compression methods, and the register that holds them.

A method says which options it reads, which modules it accepts, which modules it compresses by
default, whether it needs data, what it decides on one weight and how it compresses a model. The
file that defines a method also registers the method. No other code depends on which method is used.
Another package can add methods of its own. To do so, it calls `register_method`, or it lists the
module that makes this call under the entry point group `hf_rmt.methods`.

The files of the methods import torch only inside of functions. So options can be checked and listed
without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from hf_rmt.checks import check_choice
from hf_rmt.settings.option import Option

HOMES = (
    "hf_rmt.compression.methods.laws",
    "hf_rmt.compression.methods.truncation",
    "hf_rmt.compression.methods.pruning",
    "hf_rmt.ternary.method",
)
"""The modules that register the methods of this package. `methods` lists the methods in this
order."""
ENTRY_POINTS = "hf_rmt.methods"


class Method(ABC):
    """A way to compress weights. Every method is a subclass.

    Attributes:
        name: The name by which users choose the method, as in `RMTConfig(method=name)`.
        help: What the method does, in a sentence.
        options: The options that the method reads, besides those that every method reads.
        one_of: The options of which exactly one must be given; empty if there is no such rule.
        accepted: The kinds of modules that the method accepts, in words.
        takes_heads: Whether the method compresses the head of a model (the layers after the
            repeated blocks) by default, instead of the repeated blocks.
        reads_spectrum: Whether the method separates signal from noise (see `hf_rmt.spectra`) by the
            spectrum of a weight, the list of its squared singular values. If so, the decisions of
            the method hold the spectrum, split into signal and noise, and `hf_rmt.analyze` accepts
            the method.
        concurrent: Whether `decide` may be called on several threads at a time. This is safe if a
            call changes nothing that another call sees.
    """

    name: str
    help: str
    options: tuple[Option, ...] = ()
    one_of: tuple[str, ...] = ()
    accepted: str = "linear layer or plain two-dimensional convolution"
    takes_heads: bool = False
    reads_spectrum: bool = False
    concurrent: bool = False

    def check(self, settings: Any) -> None:
        """Raise an error if options contradict each other. Each single value was checked before.

        Raises:
            ValueError: If options contradict each other.
        """
        given = [key for key in self.one_of if getattr(settings, key) is not None]
        if self.one_of and len(given) != 1:
            raise ValueError(
                f"method={self.name!r} needs {' or '.join(self.one_of)}, exactly one, to say what "
                f"is kept, got {' and '.join(given) or 'none'}; set one"
            )

    @abstractmethod
    def accepts(self, module: Any) -> bool:
        """Whether the method can compress a module of this kind."""

    @abstractmethod
    def default_targets(self, layers: Mapping[str, Any], model: Any) -> list[str]:
        """The layers to compress if the user names none.

        Args:
            layers: The modules that the method accepts, by name, in the order of the model.
            model: The model.

        Returns:
            The names of the layers to compress, in the same order.
        """

    def why_no_default(self) -> str:
        """Words for an error message: why `default_targets` returned no layer of a model."""
        return "none of its layers is taken by default"

    def why_data(self, settings: Any) -> str:
        """Why the method needs calibration batches (model inputs); empty if it needs none."""
        return ""

    def why_no_filter(self) -> str:
        """Why `RMTCallback` cannot use this method, and the remedy; empty if it can use it."""
        return ""

    @abstractmethod
    def decide(self, name: str, weight: Any, settings: Any) -> Any:
        """Decide what happens to one weight, without calibration data.

        Args:
            name: The module's name in the model, as in `named_modules()`.
            weight: The weight as a matrix, shape (out, in); it is not changed.
            settings: The method and the options that the user chose.

        Returns:
            A `hf_rmt.compression.decision.Decision`: keep the layer, rewrite its weight, or
            replace the layer.
        """

    @abstractmethod
    def compress_model(
        self,
        model: Any,
        names: Sequence[str],
        settings: Any,
        *,
        calibration: Iterable[Mapping[str, Any]] | None = None,
        size: float | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Compress layers of a model in place.

        Args:
            model: Any torch module with its weights in memory. If several processes run, all of
                them have the same model.
            names: Names of the layers to compress, as
                `hf_rmt.compression.targets.selection.select_layers` returns them.
            settings: The method and the options that the user chose.
            calibration: Batches of inputs; each maps the model's arguments to values. None if there
                are none.
            size: Share of the layers' parameters to keep; None if the user sets no limit.
            dry_run: Whether to make only the plan and leave the model unchanged.

        Returns:
            A `hf_rmt.report.CompressionReport`.
        """


_REGISTERED: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Register a method by its name. The file that defines a method calls this in its last line.

    Args:
        method: The method. If a method of the same name and class is registered already, as after a
            reload of its module, the new one replaces it.

    Returns:
        The method.

    Raises:
        ValueError: If a method of another class has this name, or if another method declares one of
            the options differently.
    """
    for option in method.options:
        for other in _REGISTERED.values():
            if any(known.name == option.name and known != option for known in other.options):
                raise ValueError(
                    f"option {option.name!r} of method {method.name!r} is declared differently by "
                    f"method {other.name!r}; import its Option from there, or rename yours"
                )
    known = _REGISTERED.get(method.name)
    if known is not None and type(known).__qualname__ != type(method).__qualname__:
        raise ValueError(f"method {method.name!r} is registered already; choose another name")
    _REGISTERED[method.name] = method
    return method


def unregister_method(name: str) -> None:
    """Remove a method from the register, for example at the end of a test."""
    _REGISTERED.pop(name, None)


@cache
def _import_homes() -> None:
    for home in HOMES:
        import_module(home)
    for point in entry_points(group=ENTRY_POINTS):
        point.load()


def methods() -> dict[str, Method]:
    """A dict of all methods by name: those of this package, ordered as `HOMES`, then others."""
    _import_homes()
    return dict(sorted(_REGISTERED.items(), key=lambda entry: _place(entry[1])))


def _place(method: Method) -> int:
    home = type(method).__module__
    return HOMES.index(home) if home in HOMES else len(HOMES)


def method_of(settings: Any) -> Method:
    """The method whose name is `settings.method`.

    Raises:
        ValueError: If the method is unknown.
    """
    return method_named(settings.method)


def method_named(name: str) -> Method:
    """The method with this name.

    Raises:
        ValueError: If no method has this name.
    """
    known = methods()
    check_choice("method", name, tuple(known))
    return known[name]


def spectral_methods() -> tuple[str, ...]:
    """Names of the methods that separate signal from noise by the spectrum of a weight.

    The spectrum is the list of the squared singular values; see `hf_rmt.spectra`.
    """
    return tuple(name for name, method in methods().items() if method.reads_spectrum)


def method_options() -> dict[str, Option]:
    """A dict of the options of all methods by name. Options that methods share appear once."""
    return {option.name: option for method in methods().values() for option in method.options}


def owners(option: str) -> list[str]:
    """Names of the methods that read an option."""
    return [
        name
        for name, method in methods().items()
        if any(known.name == option for known in method.options)
    ]
