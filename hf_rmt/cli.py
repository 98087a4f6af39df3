"""`hf-rmt analyze | compress | export | extract-lora | demo`: one library call per command."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_rmt import __version__
from hf_rmt.compression.methods.spectral import SPECTRAL_OPTIONS
from hf_rmt.settings import COMMON_OPTIONS, Option, methods, spectral_methods
from hf_rmt.settings.method import method_options

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None reads `sys.argv`.

    Returns:
        The exit status: 0; 1 after an error; 130 if it was interrupted.
    """
    options = _parser().parse_args(_hyphenated(sys.argv[1:] if arguments is None else arguments))
    logger = logging.getLogger("hf_rmt")
    level = logger.level
    _quieten(options.quiet)
    try:
        options.run(options)
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if options.traceback:
            raise
        print("hf-rmt: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.traceback:
            raise
        text = str(error).strip() or "no message; --traceback shows where"
        print(f"hf-rmt: {type(error).__name__}: {text}", file=sys.stderr)
        return 1
    finally:
        logger.setLevel(level)  # a program that calls this function has its own
    return 0


def _hyphenated(words: Sequence[str]) -> list[str]:
    """Write flags with hyphens: recipes and transformers write --target_modules.

    Examples:
        >>> _hyphenated(["--max_rank=3", "my_model"])
        ['--max-rank=3', 'my_model']
    """
    flags = re.compile("^--[^=]*")
    return [flags.sub(lambda flag: flag[0].replace("_", "-"), word) for word in words]


def _quieten(quiet: bool) -> None:
    """Progress bars and warnings go to standard error, and nowhere when asked for quiet."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("hf_rmt").setLevel(logging.ERROR if quiet else logging.WARNING)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def _analyze(options: argparse.Namespace) -> None:
    from hf_rmt.huggingface.api import analyze

    _check_page(options)
    _check_writable(options.save)
    report = analyze(
        options.model,
        target_modules=_targets(options),
        method=options.method,
        **_given(options),
    )
    if options.save:
        report.save(options.save)
    _write_page(options, report)
    _show(options, report, report.to_json())


def _compress(options: argparse.Namespace) -> None:
    from hf_rmt.huggingface.api import compress, load_compressed, load_if_path
    from hf_rmt.huggingface.config import RMTConfig

    config = RMTConfig(
        method=options.method,
        target_modules=_targets(options),
        modules_to_not_convert=options.modules_to_not_convert,
        **_given(options),
    )
    _check_page(options)
    if options.dry_run:
        report = compress(load_if_path(options.model), config, dry_run=True)
        _write_page(options, report)
        _show(options, report, report.to_json())
        return
    if not options.output and not options.push_to_hub:
        raise ValueError("say where the result goes: OUTPUT, --push-to-hub or --dry-run")
    _check_output(options, options.model)
    model, report = load_compressed(options.model, config)
    _deliver(options, model, options.model)
    _write_page(options, report)
    _show(options, report, report.to_json())


def _export(options: argparse.Namespace) -> None:
    from hf_rmt.huggingface.api import export_dense

    _check_output(options, options.model)
    _deliver(options, export_dense(options.model), options.model)


def _extract_lora(options: argparse.Namespace) -> None:
    from hf_rmt.huggingface.lora.extract import extract_adapter

    _check_output(options, options.base, options.tuned)
    adapter = extract_adapter(
        options.base, options.tuned, size=options.size, threshold=options.threshold
    )
    _deliver(options, adapter, options.tuned)
    _show(options, adapter, adapter.to_json())


def _demo(options: argparse.Namespace) -> None:
    from hf_rmt.demo import run_demo

    _check_writable(options.output)
    result = run_demo(Path(options.output))
    _show(options, result, result.to_json())


def _deliver(options: argparse.Namespace, result: Any, source: str) -> None:
    """A model or an adapter, with what its source carries, to OUTPUT, to the Hub, or to both."""
    from hf_rmt.huggingface.delivery import deliver

    repo = getattr(options, "push_to_hub", None)
    private = getattr(options, "private", None)
    for note in deliver(result, source, options.output, repo=repo, private=private):
        _note(options, note)


def _show(options: argparse.Namespace, result: object, text: str) -> None:
    """The result on standard output, as JSON if asked for."""
    print(text if options.json else result)


def _note(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr)


def _write_page(options: argparse.Namespace, report: Any) -> None:
    """The report as one HTML file, under the model's own name, if asked for."""
    if options.html:
        report.to_html(options.html, title=Path(options.model).name or options.model)
        _note(options, f"page written to {options.html}")


def _check_page(options: argparse.Namespace) -> None:
    """Find out before the long work whether the page can be written."""
    path = Path(options.html or "report.html")
    if options.html and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise ValueError(f"--html must name a file in a folder that can be written to, got {path}")


def _targets(options: argparse.Namespace) -> list[str] | str | None:
    """Names, unless the one value is all-linear or has the signs of a regular expression."""
    values = options.target_modules
    one = values[0] if values is not None and len(values) == 1 else ""
    return one if one == "all-linear" or re.search(r"[^\w.]", one) else values


def _check_output(options: argparse.Namespace, *sources: str) -> None:
    """Refuse an OUTPUT that is an input, holds another model, or cannot be written to."""
    from hf_rmt.huggingface.delivery import check_output

    check_output(options.output, sources, overwrite=options.overwrite)


def _check_writable(folder: str | None) -> None:
    """Find out before the long work whether the result can be written."""
    from hf_rmt.huggingface.delivery import check_writable

    check_writable(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-rmt", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    common.add_argument("--quiet", action="store_true", help="no progress bars, no notes")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    targets = argparse.ArgumentParser(add_help=False)
    targets.add_argument(
        "--target-modules", nargs="+", help="names, one regular expression, or all-linear"
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
    _add_analyze(commands, [common, targets, analysis])
    _add_compress(commands, [common, targets, compression])
    _add_export(commands, [common])
    _add_extract_lora(commands, [common])
    _add_demo(commands, [common])
    return parser


def _method_options(names: Sequence[str], known: Iterable[Option]) -> argparse.ArgumentParser:
    """Flags for a method and for its options, as the files of the methods declare them."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=names,
        default="pdb",
        help="; ".join(f"{name}: {methods()[name].help}" for name in names),
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


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of methods that stand on the command line."""
    known = [*method_options(), *(option.name for option in COMMON_OPTIONS if option.parse)]
    return {name: getattr(options, name) for name in known if hasattr(options, name)}


def _add_analyze(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("analyze", parents=parents, help="fit every weight's spectrum")
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--save", metavar="FOLDER", help="also write tables, JSON and plots")
    _add_html(parser)
    parser.set_defaults(run=_analyze)


def _add_compress(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("compress", parents=parents, help="compress and save or push")
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output", nargs="?", help="folder for the compressed model")
    parser.add_argument(
        "--modules-to-not-convert", nargs="+", metavar="NAME", help="names that stay dense"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, change nothing")
    _add_html(parser)
    _add_push(parser)
    _add_overwrite(parser)
    parser.set_defaults(run=_compress)


def _add_html(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", help="also write one page to browse in")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model that OUTPUT holds"
    )


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--push-to-hub", metavar="REPO", help="push there: owner/name, or name")
    parser.add_argument(
        "--private", action="store_true", default=None, help="make a new REPO private"
    )


def _add_export(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", parents=parents, help="write a plain dense model")
    parser.add_argument("model", help="compressed model: folder or Hub id")
    parser.add_argument("output", help="folder for the dense model")
    _add_overwrite(parser)
    parser.set_defaults(run=_export)


def _add_extract_lora(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "extract-lora", parents=parents, help="fine-tuned minus pretrained as a LoRA adapter"
    )
    parser.add_argument("base", help="pretrained model: folder or Hub id")
    parser.add_argument("tuned", help="fine-tuned model: folder or Hub id")
    parser.add_argument("output", help="folder for the adapter")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size", type=float, metavar="FRACTION", help="of the matrices (default 0.03)"
    )
    sizes.add_argument("--threshold", type=float, metavar="X", help="importance to keep, up to 1")
    _add_push(parser)
    _add_overwrite(parser)
    parser.set_defaults(run=_extract_lora)


def _add_demo(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", parents=parents, help="all of it on a trained BERT")
    parser.add_argument("output", nargs="?", default="hf-rmt-demo", help="folder for the results")
    parser.set_defaults(run=_demo)


if __name__ == "__main__":
    sys.exit(main())
