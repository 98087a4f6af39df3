"""`python -m tests.families.table`: every step with every family, written to docs/families.md."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import transformers

from hf_rmt.report.tables import markdown_table
from tests.families.entries import BY_NAME
from tests.families.steps import NOT_TRIED, REFUSED, STEPS, WORKS, Result, tried

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEADINGS = {
    "memory": "compress",
    "load": "while loading",
    "reload": "saved, loaded",
    "dequantize": "dequantize",
    "train": "train",
    "lora": "LoRA",
    "generate": "generate",
}


INTRO = """\
Each class was built from a tiny config with random weights and tried with the default config:
compressed in memory with `int8` and `drop`, saved and loaded; compressed while loading, with the
same state as in memory; saved and loaded again; made dense again; trained for a step; given LoRA
adapters; and, where it generates, a few tokens. States are equal bit for bit, outputs to 1e-6."""
LEGEND = """\
*Covered* is the share of all parameters of the model that lie in compressed layers. Embeddings and
experts count as well. These models are tiny, so embeddings weigh more than in large ones. Experts
that a model holds as one tensor for all of them stay dense: all those of Mixtral, while the tiny
Qwen2Moe has a large shared expert, which is an ordinary layer.

*Left dense* counts layers by cause. `too small`: the shorter side is below `min_size`. `read by
parent`: the model computes with the weight without calling the layer. `converted`: transformers
splits or joins the tensor while it loads. `router`: the layer chooses among experts."""


def page(results: Sequence[Result]) -> str:
    """The page with one row a class."""
    tries = [one for result in results for one in result.outcome.values() if one != NOT_TRIED]
    works, refused = tries.count(WORKS), tries.count(REFUSED)
    whole = sum(result.works for result in results)
    totals = (
        f"{whole} of {len(results)} classes pass every step that applies to them, or are "
        f"refused with a reason.\nOf {len(tries)} steps {works} work and {refused} are "
        "refused.\nMade by `python -m tests.families.table` with transformers "
        f"{transformers.__version__}."
    )
    table = markdown_table([_row(result) for result in results])
    parts = ["# Families of models", INTRO, totals, LEGEND, table, *_remarks(results)]
    return "\n\n".join(parts) + "\n"


def _row(result: Result) -> dict[str, str]:
    kept = ", ".join(f"{count} {cause}" for cause, count in result.kept.items())
    row = {"class": str(result.family)}
    row |= {HEADINGS[step]: _short(result.outcome[step]) for step in STEPS}
    return row | {"covered": f"{100 * result.share:.0f} %", "left dense": kept or NOT_TRIED}


def _short(outcome: str) -> str:
    return outcome if outcome in (WORKS, NOT_TRIED, REFUSED) else "fails"


def _remarks(results: Sequence[Result]) -> list[str]:
    lines = [f"- {result.family} is refused: {result.why}" for result in results if result.why]
    for result in results:
        for step, outcome in result.outcome.items():
            if _short(outcome) == "fails":
                lines.append(f"- {result.family}, {HEADINGS[step]}: `{outcome}`")
    return ["## Refusals and failures", "\n".join(lines)] if lines else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Try families and write the page once all have been tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families to try; all by default")
    parser.add_argument("--results", type=Path, help="JSON that is gone on with and added to")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = _known(options.results)
    for name in options.names or BY_NAME:
        if name in results:
            continue
        start = time.perf_counter()
        result = results[name] = tried(BY_NAME[name])
        bad = {key: one for key, one in result.outcome.items() if _short(one) == "fails"}
        print(name, f"{time.perf_counter() - start:.1f} s", result.why or bad or "ok", flush=True)
        if options.results:
            rows = {key: {**vars(value), "family": key} for key, value in results.items()}
            options.results.write_text(json.dumps(rows), encoding="utf-8")
    if results.keys() >= BY_NAME.keys():
        PAGE.write_text(page([results[name] for name in BY_NAME]), encoding="utf-8")


def _known(path: Path | None) -> dict[str, Result]:
    """Results of an earlier run."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {name: Result(**{**row, "family": BY_NAME[name]}) for name, row in rows.items()}


if __name__ == "__main__":
    main()
