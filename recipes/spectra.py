"""Find out which law the noise of a model follows: the double bulk or the unit bulk.

The double bulk is noise of two variances; the unit bulk is noise of one variance. Four methods fit
every weight: the double bulk (PDB) with our estimator, the double bulk with the published estimator
(Wu, Zhu & Li, 2025), and the unit bulk (PUB) by BEMA and by a kernel density.
The output folder receives `results.md` with the tables, `layers.csv` and `results.json` with all
numbers, and four figures. `laws` shows the fitted curves and the histogram of the eigenvalues,
`laws-roots` shows the same for the singular values. `distances` and `moments` show how far the laws
are from the eigenvalues. Each figure is saved as .svg and .pdf, on a light background and, as
`*-dark`, on a dark background.

    python recipes/spectra.py --embedded
    python recipes/spectra.py --model bert-base-uncased --layers encoder.layer.0.output.dense
    python recipes/spectra.py --model FOLDER --target_modules query value
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from workbench.command import dataclass_parser, parsed, run
from workbench.data.rows import needs_hub
from workbench.report.comparison import distribution_figure, laws_figure, ranges_figure
from workbench.report.spectra_tables import (
    BULKS,
    FINDERS,
    METHODS,
    ORDERS,
    POPULATIONS,
    distances,
    errors,
    markdown,
    summary,
)
from workbench.writing import write_figure, write_text

import numpy as np
import torch
from transformers import AutoModel

import hf_rmt
from hf_rmt.demo import demo_model_path
from hf_rmt.report.depth import short_names
from hf_rmt.report.records import json_text
from hf_rmt.report.tables import csv_text, shape_text
from hf_rmt.spectra import SpectrumFit, fit_double_bulk, fit_unit_bulk
from hf_rmt.spectra.agreement import kolmogorov_distance

FITS = dict(
    zip(
        METHODS,
        (
            fit_double_bulk,
            partial(fit_double_bulk, published=True),
            partial(fit_unit_bulk, estimator="bema"),
            partial(fit_unit_bulk, estimator="kernel"),
        ),
        strict=True,
    )
)
MOMENTS = {"with spikes, all eigenvalues": "whole", "the bulk, own noise": "own noise"}
"""Panels of the figure of moments, each with its population (set of eigenvalues)."""
Laws = Mapping[str, SpectrumFit]
"""The fits of one weight by method."""


@dataclass
class Arguments:
    """Options of the recipe."""

    model: str = field(default="bert-base-uncased", metadata={"help": "model: folder or Hub id"})
    embedded: bool = field(default=False, metadata={"help": "the demo BERT, no Hub"})
    output_dir: str = field(
        default="results/spectra", metadata={"help": "folder for tables and figures"}
    )
    layers: list[str] = field(
        default_factory=list, metadata={"help": "layers to draw; default: evenly over the model"}
    )
    max_layers: int = field(
        default=6, metadata={"help": "number of layers to draw without --layers"}
    )
    target_modules: list[str] = field(
        default_factory=list, metadata={"help": "layers to fit; default: attention and MLP"}
    )


def parser() -> Any:
    """The options of this recipe."""
    return dataclass_parser(Arguments, __doc__)


def main() -> None:
    arguments = parsed(parser())
    model = load(arguments)
    report = hf_rmt.analyze(model, target_modules=arguments.target_modules or None)
    left_out = {layer.name: layer.fit.reason for layer in report if layer.fit.law is None}
    spectra = {layer.name: compared(layer.fit) for layer in report if layer.fit.law is not None}
    shapes = {layer.name: shape_text(layer.shape) for layer in report}
    shown = chosen(arguments, spectra)
    rows = [row for name, fits in spectra.items() for row in judged(name, shapes[name], fits)]
    title = "the demo BERT" if arguments.embedded else Path(arguments.model).name
    text = markdown(
        rows, title=title, kind=model.config.model_type, shown=list(shown), left_out=left_out
    )
    folder = Path(arguments.output_dir)
    write_text(folder / "results.md", text)
    write_text(folder / "layers.csv", csv_text(rows))
    payload = {"model": title, "left_out": left_out, "summary": summary(rows), "layers": rows}
    write_text(folder / "results.json", json_text(payload, indent=2))
    for dark in (False, True):
        for name, figure in figures(shown, shapes, rows, title=title, dark=dark).items():
            write_figure(figure, folder, f"{name}{'-dark' if dark else ''}", "svg", "pdf")
    print(f"{text}\nTables and figures are in {folder}")


def load(arguments: Arguments) -> Any:
    """The model, from this machine or the Hub, in float64 for the sake of small eigenvalues."""
    if arguments.embedded:
        return AutoModel.from_pretrained(demo_model_path(), dtype=torch.float64)
    with needs_hub(arguments.model, "--model FOLDER (a model on this machine)"):
        return AutoModel.from_pretrained(arguments.model, dtype=torch.float64)


def compared(fit: SpectrumFit) -> Laws:
    """The fits of the same eigenvalues by every method."""
    others = {
        method: refit(fit.eigenvalues, fit.shape)
        for method, refit in FITS.items()
        if method != "PDB"
    }
    return {"PDB": fit, **others}


def judged(layer: str, shape: str, fits: Laws) -> list[dict[str, Any]]:
    """Compare each law with sets of eigenvalues (populations): moments and Kolmogorov distance.

    A law of the bulk is compared with the noise eigenvalues that its own method finds. This choice
    could favour a method. So each law is also compared with the noise that PDB and BEMA find.

    Args:
        layer: Name of the layer.
        shape: Shape of its weight, `out x in`; the shape in a fit may be transposed.
        fits: The fits by method.

    Returns:
        One row for each method and population.
    """
    rows = []
    for method, fit in fits.items():
        for population in POPULATIONS:
            bulk = population in BULKS
            values = fits[FINDERS.get(population, method)].noise if bulk else fit.eigenvalues
            row: dict[str, Any] = {
                "layer": layer,
                "shape": shape,
                "method": method,
                "population": population,
                "spikes": fit.n_spikes,
                "aspect_ratio": fit.noise_law.aspect_ratio,
                "distance": kolmogorov_distance(fit.noise_law, values) if bulk else None,
            }
            for k in ORDERS:
                row[f"gamma{k}"] = fit.moment(k, bulk=population != "whole")
                row[f"gamma{k}_measured"] = float(np.mean(values**k))
            rows.append(row)
    return rows


def chosen(arguments: Arguments, spectra: Mapping[str, Laws]) -> dict[str, Laws]:
    """The layers to draw: those that --layers names, or a few, spread evenly over the model."""
    if not spectra:
        raise SystemExit(
            "no layer has a spectrum that a law can be fitted to; pass another --model or other "
            "--target_modules"
        )
    names = list(spectra)
    if unknown := set(arguments.layers) - set(names):
        raise SystemExit(f"--layers must name layers such as {names[:3]}, got {sorted(unknown)}")
    count = min(arguments.max_layers, len(names))
    steps = np.linspace(0, len(names) - 1, count).round().astype(int)
    return {name: spectra[name] for name in arguments.layers or [names[k] for k in steps]}


def figures(
    shown: Mapping[str, Laws],
    shapes: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    **look: Any,
) -> dict[str, Any]:
    """The figures by name.

    Args:
        shown: The layers to draw, with their fits.
        shapes: The shape of each weight, `out x in`.
        rows: The rows that `judged` returned for all layers.
        **look: Title of the figures and whether they are dark.

    Returns:
        The figures.
    """
    panels = [
        (f"{short}\n{shapes[name]}", fits)
        for short, (name, fits) in zip(short_names(list(shown)), shown.items(), strict=True)
    ]
    percents = {
        heading: {name: 100 * np.abs(each) for name, each in errors(rows, population).items()}
        for heading, population in MOMENTS.items()
    }
    groups = [rf"$\gamma_{k}$" for k in ORDERS]
    found, label = distances(rows, "own noise"), "Kolmogorov distance of law and noise"
    return {
        "laws": laws_figure(panels, square_root=False, **look),
        "laws-roots": laws_figure(panels, **look),
        "distances": distribution_figure(found, label=label, **look),
        "moments": ranges_figure(percents, groups, label="error of a moment (%)", **look),
    }


if __name__ == "__main__":
    run(main)
