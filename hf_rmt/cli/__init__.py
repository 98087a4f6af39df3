"""Analyse or compress saved models: `hf-rmt analyze | compress | export | extract-lora | demo`."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hf_rmt.cli.flags import parser

INTERRUPTED = 130
"""Exit status after Ctrl-C, the same as in a shell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; None reads them from `sys.argv`.

    Returns:
        The exit status: 0 after success, 1 after an error, 130 after Ctrl-C.
    """
    options = parser(__doc__).parse_args(
        _hyphenated(sys.argv[1:] if arguments is None else arguments)
    )
    try:
        with _any_characters(sys.stdout), _loudness(options.quiet):
            options.run(options)
    except BrokenPipeError:  # the program that reads the output, such as head, has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if options.traceback:
            raise
        done = "; ".join(getattr(options, "done", [])) or "nothing was written"
        print(f"hf-rmt: interrupted; {done}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.traceback:
            raise
        text = str(error).strip() or "no message; --traceback shows where it came from"
        print(f"hf-rmt: {type(error).__name__}: {text}", file=sys.stderr)
        return 1
    return 0


def _hyphenated(words: Sequence[str]) -> list[str]:
    """Replace underscores in flags by hyphens, so that --target_modules works too.

    Examples:
        >>> _hyphenated(["--max_rank=3", "my_model"])
        ['--max-rank=3', 'my_model']
    """
    flags = re.compile("^--[^=]*")
    return [flags.sub(lambda flag: flag[0].replace("_", "-"), word) for word in words]


@contextmanager
def _any_characters(stream: Any) -> Iterator[None]:
    """A context in which a stream prints `?` for a character that its encoding lacks.

    For example, ASCII lacks arrows. Standard error needs no context: Python writes such characters
    as escapes there.
    """
    errors = stream.errors if isinstance(stream, io.TextIOWrapper) else None
    if errors == "strict":
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        if errors == "strict":
            stream.reconfigure(errors=errors)


@contextmanager
def _loudness(quiet: bool) -> Iterator[None]:
    """A context that shows warnings of hf_rmt and progress bars, or hides them if `quiet` is set.

    At the end, log level, environment and progress bars are set as they were before.
    """
    logger = logging.getLogger("hf_rmt")
    level, before = logger.level, dict(os.environ)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
    bars: Any = sys.modules.get("transformers.utils.logging") if quiet else None
    shown = bars is not None and bars.is_progress_bar_enabled()
    if quiet:  # for modules that are imported later
        os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if shown:  # transformers read the environment when it was imported, so tell it now
        bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in ("TRANSFORMERS_VERBOSITY", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
        if shown:
            bars.enable_progress_bar()
