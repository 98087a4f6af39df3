"""Makes the flags of the command line from the options that the methods declare."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from hf_rmt import __version__
from hf_rmt.cli import commands
from hf_rmt.compression.methods.spectral import SPECTRAL_OPTIONS
from hf_rmt.settings import COMMON_OPTIONS, Option, methods, spectral_methods
from hf_rmt.settings.method import method_options


def parser(words: str | None) -> argparse.ArgumentParser:
    """The parser of all commands; `words` describe the program in its --help."""
    parser = argparse.ArgumentParser(prog="hf-rmt", description=words)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    added = parser.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    common.add_argument("--quiet", action="store_true", help="no progress bars, no notes")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    targets = argparse.ArgumentParser(add_help=False)
    targets.add_argument(
        "--target-modules", nargs="+", help="layers: names, one regular expression, or all-linear"
    )
    stored = {option.name for option in SPECTRAL_OPTIONS}
    every = {**method_options(), **{option.name: option for option in COMMON_OPTIONS}}
    told = [
        option
        for name in spectral_methods()
        for option in methods()[name].options
        if option.name not in stored
    ]
    analysis = _method_options(spectral_methods(), dict.fromkeys(told))
    compression = _method_options(tuple(methods()), every.values())
    _add_analyze(added, [common, targets, analysis])
    _add_compress(added, [common, targets, compression])
    _add_export(added, [common])
    _add_extract_lora(added, [common])
    _add_demo(added, [common])
    return parser


def _method_options(names: Sequence[str], known: Iterable[Option]) -> argparse.ArgumentParser:
    """A parser with the flag --method (choices: `names`) and a flag for each option in `known`.

    The parsers of the commands inherit these flags.
    """
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=names,
        default="pdb",
        help="; ".join(f"{name}: {methods()[name].help.rstrip('.')}" for name in names),
    )
    for option in known:
        if option.parse is not None:
            _add_option(group, option)
    return parser


def _add_option(group: Any, option: Option) -> None:
    flag = f"--{option.name.replace('_', '-')}"
    told = f"{option.help} Default: {option.default}.".replace("%", "%%")
    kind: dict[str, Any] = {"type": option.parse, "choices": option.choices or None}
    if option.parse is bool:
        kind = {"action": argparse.BooleanOptionalAction}
    elif not option.choices:
        kind["metavar"] = option.name.upper()
    group.add_argument(flag, dest=option.name, default=argparse.SUPPRESS, help=told, **kind)


def _add_analyze(added: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = added.add_parser("analyze", parents=parents, help="find signal and noise in a model")
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--save", metavar="FOLDER", help="also write tables, JSON and plots")
    _add_html(parser)
    parser.set_defaults(run=commands.run_analyze)


def _add_compress(added: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = added.add_parser("compress", parents=parents, help="compress and save or push")
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output", nargs="?", help="folder for the compressed model")
    parser.add_argument(
        "--modules-to-not-convert", nargs="+", metavar="NAME", help="layers that stay dense"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, change nothing")
    _add_html(parser)
    _add_push(parser)
    _add_overwrite(parser)
    parser.set_defaults(run=commands.run_compress)


def _add_html(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", help="also write the report as one HTML page")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model that OUTPUT holds"
    )


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--push-to-hub", metavar="REPO", help="push to this Hub repository: owner/name, or name"
    )
    parser.add_argument(
        "--private", action="store_true", default=None, help="make REPO private if it is new"
    )


def _add_export(added: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = added.add_parser("export", parents=parents, help="write a plain dense model")
    parser.add_argument("model", help="compressed model: folder or Hub id")
    parser.add_argument("output", help="folder for the dense model")
    _add_overwrite(parser)
    parser.set_defaults(run=commands.run_export)


def _add_extract_lora(added: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = added.add_parser(
        "extract-lora",
        parents=parents,
        help="save fine-tuned minus pretrained weights as a LoRA adapter",
    )
    parser.add_argument("base", help="pretrained model: folder or Hub id")
    parser.add_argument("tuned", help="fine-tuned model: folder or Hub id")
    parser.add_argument("output", help="folder for the adapter")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size",
        type=float,
        metavar="FRACTION",
        help="parameters of the adapter divided by those of the matrices it updates (default 0.03)",
    )
    sizes.add_argument(
        "--threshold",
        type=float,
        metavar="FRACTION",
        help="instead of --size: how much to keep of what all directions (parts of rank one) are "
        "worth; 1 keeps everything, and useful values lie above 0.99",
    )
    _add_push(parser)
    _add_overwrite(parser)
    parser.set_defaults(run=commands.run_extract_lora)


def _add_demo(added: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = added.add_parser("demo", parents=parents, help="run all steps on a trained BERT")
    parser.add_argument("output", nargs="?", default="hf-rmt-demo", help="folder for the results")
    parser.set_defaults(run=commands.run_demo)
