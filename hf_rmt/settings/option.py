"""One option: its name, its default, its allowed values and its meaning.

An option is declared once, beside the method that reads the option. The settings check values with
this declaration, the command line makes a flag of it, and the documentation quotes the help text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """A named value that a user may set.

    Attributes:
        name: The keyword in `RMTConfig`. The flag of the command line has hyphens where this
            keyword has underscores.
        default: The value if the user gives none.
        check: A function that is called with the name and with any value except the default. It
            returns the value as plain JSON. If the value is wrong, it raises a TypeError or
            ValueError that names the value, the rule and the remedy.
        help: What the option means, in a sentence or two.
        parse: A function that makes the value from a word on the command line; None for an option
            without a flag.
        choices: All possible values, if they are few; otherwise empty.
    """

    name: str
    default: Any
    check: Callable[[str, Any], Any]
    help: str
    parse: Callable[[str], Any] | None = str
    choices: tuple[str, ...] = ()

    def checked(self, value: Any) -> Any:
        """Check a value and return it as plain JSON.

        Raises:
            TypeError: If the value has the wrong type.
            ValueError: If the value is out of range.
        """
        same = type(value) is type(self.default) and value == self.default
        return value if same else self.check(self.name, value)
