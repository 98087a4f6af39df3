"""Starts and ends a recipe: reads its options, shows its `--help`, prints one line after Ctrl-C.

Recipes import this module before the large libraries, so that Ctrl-C prints one line even during
the imports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

INTERRUPTED = 130
"""Exit status of a program that Ctrl-C ended: 128 + SIGINT."""


class KeepLines(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description and shows the default of each option."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []) or not action.help:
            return action.help
        return super()._get_help_string(action)


def parser_of(description: str) -> argparse.ArgumentParser:
    """An empty parser whose `--help` begins with the docstring of the recipe.

    Args:
        description: The docstring.

    Returns:
        The parser.
    """
    return argparse.ArgumentParser(description=description, formatter_class=KeepLines)


def dataclass_parser(kind: type, description: str) -> Any:
    """A parser with one option for each field of a dataclass.

    Args:
        kind: The dataclass; `help` in the metadata of a field explains its option.
        description: The docstring of the recipe.

    Returns:
        A `transformers.HfArgumentParser`; pass it to `parsed`.
    """
    from transformers import HfArgumentParser  # takes seconds to import

    return HfArgumentParser(kind, description=description, formatter_class=KeepLines)


def parsed(parser: Any) -> Any:
    """The options on the command line, as an instance of the parser's dataclass."""
    return parser.parse_args_into_dataclasses()[0]


def run(main: Callable[[], None]) -> None:
    """Run a recipe; Ctrl-C ends it with one line and exit status 130."""
    try:
        main()
    except KeyboardInterrupt:
        _say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    _leave_group()


def _leave_group() -> None:
    """Leave the group of processes, if there is one.

    Threads that still serve the group when the interpreter ends can abort the process, although
    its work is done.
    """
    from torch import distributed  # takes seconds to import, and main has done it

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _say_interrupted() -> None:
    print("\ninterrupted: finished results are kept, start again to go on", file=sys.stderr)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Replaces `sys.excepthook`, so that Ctrl-C prints one line even before `run` is called."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _say_interrupted()
    raise SystemExit(INTERRUPTED)


sys.excepthook = _hook
