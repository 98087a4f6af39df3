"""The functions that run the commands of the command line, with parsed options."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from hf_rmt.checks import check_path
from hf_rmt.settings import COMMON_OPTIONS
from hf_rmt.settings.method import method_options


def run_analyze(options: argparse.Namespace) -> None:
    """Tell signal from noise in the weights of a model, and print or write the report."""
    from hf_rmt.huggingface.api import analyze

    _check_page(options)
    _check_writable(options.save, "--save")
    report = analyze(
        options.model,
        target_modules=_targets(options),
        method=options.method,
        **_given(options),
    )
    if options.save:
        report.save(options.save)
        _note(options, f"tables and plots written to {options.save}")
    _write_page(options, report)
    _show(options, report)


def run_compress(options: argparse.Namespace) -> None:
    """Compress a model and write it, or print the plan (what would be done to each layer)."""
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
        report = compress(load_if_path(options.model), config, dry_run=True).timed()
        _write_page(options, report)
        _show(options, report)
        return
    if options.output is None and options.push_to_hub is None:
        raise ValueError("pass OUTPUT or --push-to-hub REPO for the result, or --dry-run")
    _check_output(options, options.model)
    model, report = load_compressed(options.model, config)
    _deliver(options, model, options.model)
    report = report.timed()
    _write_page(options, report)
    _show(options, report)


def run_export(options: argparse.Namespace) -> None:
    """Write a copy of a compressed model in which all layers are dense (not compressed)."""
    from hf_rmt.huggingface.api import export_dense

    _check_output(options, options.model)
    _deliver(options, export_dense(options.model), options.model)


def run_extract_lora(options: argparse.Namespace) -> None:
    """Make a LoRA adapter of what fine-tuning changed in the weights, and write it."""
    from hf_rmt.huggingface.lora.extract import extract_adapter

    _check_output(options, options.base, options.tuned)
    adapter = extract_adapter(
        options.base, options.tuned, size=options.size, threshold=options.threshold
    )
    _deliver(options, adapter, options.tuned)
    _show(options, adapter)


def run_demo(options: argparse.Namespace) -> None:
    """Analyse, compress, save and reload a trained BERT."""
    from hf_rmt.demo import run_demo as run

    _check_writable(options.output, "OUTPUT")
    result = run(Path(options.output))
    _show(options, result)


def _deliver(options: argparse.Namespace, result: Any, source: str) -> None:
    """Write a model or adapter to the folder OUTPUT, to the Hub, or to both, as the user asked.

    `source` is the folder or Hub id of the original model. Its other files, such as those of the
    tokenizer, are written too.
    """
    from hf_rmt.huggingface.delivery import deliver

    repo = getattr(options, "push_to_hub", None)
    private = getattr(options, "private", None)
    for note in deliver(result, source, options.output, repo=repo, private=private):
        _note(options, note)


def _show(options: argparse.Namespace, result: Any) -> None:
    """Print the result to standard output, as JSON if the user passed --json."""
    print(result.to_json() if options.json else result)


def _note(options: argparse.Namespace, text: str) -> None:
    """Print to standard error what was done, unless --quiet is set.

    The notes are kept, because after Ctrl-C the program prints all of them in its last message.
    """
    options.done = [*getattr(options, "done", []), text]
    if not options.quiet:
        print(text, file=sys.stderr)


def _write_page(options: argparse.Namespace, report: Any) -> None:
    """If the user passed --html, write the report as one HTML file.

    The title of the page is the name of the model.
    """
    if options.html is not None:
        report.to_html(options.html, title=Path(options.model).name or options.model)
        _note(options, f"page written to {options.html}")


def _check_page(options: argparse.Namespace) -> None:
    """Refuse a file name after --html that cannot be written; called before the long work."""
    from hf_rmt.report.page.page import PAGES
    from hf_rmt.report.records import place

    if options.html is None:
        return
    check_path("--html", options.html)
    path = Path(options.html)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"--html must name a file in a folder that can be written to, got {options.html!r}"
        )
    output = getattr(options, "output", None)
    if output is not None and path.resolve() == Path(output).resolve():
        raise ValueError(f"--html and OUTPUT are both {output!r}; choose another name for the page")
    place(options.html, kinds=PAGES)


def _targets(options: argparse.Namespace) -> list[str] | str | None:
    """The layers that the user chose with --target-modules; None without this flag.

    They are a list of names, or one string: `all-linear` or a regular expression.
    """
    values = options.target_modules
    one = values[0] if values is not None and len(values) == 1 else ""
    return one if one == "all-linear" or re.search(r"[^\w.]", one) else values


def _check_output(options: argparse.Namespace, *sources: str) -> None:
    """Refuse a folder OUTPUT that is one of `sources`, holds another model, or is not writable.

    It also refuses a repository name that the Hub would refuse, and --private without
    --push-to-hub.
    """
    from hf_rmt.huggingface.delivery import check_output, check_repo

    if getattr(options, "private", None) and not options.push_to_hub:
        raise ValueError("--private is for a new REPO; pass --push-to-hub REPO with it")
    check_repo(getattr(options, "push_to_hub", None))
    check_output(options.output, sources, overwrite=options.overwrite)


def _check_writable(folder: str | None, argument: str) -> None:
    """Refuse a folder that cannot be written to; called before the long work.

    `argument`, such as "--save", names the folder in the error.
    """
    from hf_rmt.huggingface.delivery import check_writable

    check_writable(folder, argument=argument)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """A dict from name to value of the method options that the user gave on the command line.

    Options that were not given are left out, so their defaults apply.
    """
    known = [*method_options(), *(option.name for option in COMMON_OPTIONS if option.parse)]
    return {name: getattr(options, name) for name in known if hasattr(options, name)}
