"""The options that a user can set, and their checks."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self

from hf_rmt.checks import check_expression, check_integer, check_names
from hf_rmt.settings.method import Method, method_named, method_of, method_options, owners
from hf_rmt.settings.option import Option


def _targets(name: str, value: Any) -> list[str] | str | None:
    check_expression(name, value)
    return value if isinstance(value, str) else check_names(name, value)


TARGET_MODULES = Option(
    "target_modules",
    None,
    _targets,
    "The layers to compress: a list of names or of name endings, a regular expression for the "
    'whole name, or "all-linear". None: the default layers of the method. For the methods that use '
    "a spectrum, these are the linear layers of the repeated blocks, that is attention and MLP. "
    "If the blocks have no linear layer, they are the convolutions of the blocks. If there are no "
    "repeated blocks, they are all layers except the last, which is the head, and except a first "
    "convolution, which reads the input.",
    parse=None,
)
MODULES_TO_NOT_CONVERT = Option(
    "modules_to_not_convert",
    None,
    check_names,
    "Names or name endings of layers that stay dense. The name of a module covers all layers "
    "inside it.",
    parse=None,
)
SEED = Option(
    "seed",
    0,
    lambda name, value: check_integer(name, value, 0),
    "Seed of the methods that draw random numbers.",
    parse=int,
)
COMMON_OPTIONS = (TARGET_MODULES, MODULES_TO_NOT_CONVERT, SEED)
"""The options that every method reads."""
DEFAULT_METHOD = "pdb"


def all_options() -> dict[str, Option]:
    """All options by name: first those that only some methods read, then `COMMON_OPTIONS`."""
    return method_options() | {option.name: option for option in COMMON_OPTIONS}


class CompressionSettings:
    """A compression method with the values of its options.

    Each option is an attribute. An option that is not given has its default value.

    Args:
        method: The name of the method that compresses; one of `hf_rmt.settings.methods()`.
        **options: The options that `all_options()` lists. An option that the method does not read
            must stay at its default.

    Raises:
        ValueError: If a value is unknown, or two values contradict each other.
        TypeError: If a value has the wrong type, or a keyword is no option.
    """

    def __init__(self, *, method: str = DEFAULT_METHOD, **options: Any) -> None:
        chosen = method_named(method)
        known = all_options()
        if unknown := [key for key in options if key not in known]:
            near = get_close_matches(unknown[0], known, n=3)
            raise TypeError(
                f"{unknown[0]!r} is not an option; "
                + (
                    f"did you mean {' or '.join(near)}?"
                    if near
                    else f"choose among {sorted(known)}"
                )
            )
        self.method = method
        for name, option in known.items():
            setattr(self, name, option.checked(options.get(name, option.default)))
        self._check_foreign(chosen)
        chosen.check(self)

    if TYPE_CHECKING:  # options are declared beside their methods, so mypy cannot know them

        def __getattr__(self, name: str) -> Any: ...

    def _check_foreign(self, method: Method) -> None:
        """Raise an error if an option that the method does not read is not at its default."""
        own = [option.name for option in method.options]
        for name, option in method_options().items():
            value = getattr(self, name)
            if name not in own and value != option.default:
                raise ValueError(
                    f"{name}={value!r} means nothing to method={method.name!r}, which takes "
                    f"{', '.join(own)}; leave it at {option.default!r}, or choose one of the "
                    f"methods {', '.join(owners(name))}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The name of the method and the options that it reads, as plain JSON values."""
        read = (*method_of(self).options, *COMMON_OPTIONS)
        return {"method": self.method} | {
            option.name: getattr(self, option.name) for option in read
        }

    def replace(self, **changes: Any) -> Self:
        """A copy of the settings with some values changed; all values are checked again."""
        return type(self)(**{**self.to_dict(), **changes})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment] # settings can be changed
