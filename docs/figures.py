"""Draws the pictures of the pages with the library: `python docs/figures.py`.

`signal-and-noise.svg` is one attention weight of the trained BERT of the extra `demo`. The others
are matrices drawn at random, of which we know what is in them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import hf_rmt
from hf_rmt.demo import demo_model_path
from hf_rmt.report.figures.plots import spectrum_figure
from hf_rmt.report.figures.style import save_figure
from hf_rmt.spectra import fit_double_bulk, fit_weight
from hf_rmt.spectra.ensembles import double_bulk_matrix

HERE = Path(__file__).parent
LAYER = "encoder.layer.0.attention.self.value"
SHAPE = (1200, 600)


def main() -> None:
    """Write the pictures beside this file."""
    trained()
    simulated("noise.svg", "Pure noise: the law covers everything", noise())
    simulated("spikes.svg", "Noise and four directions of signal", noise(spikes=(30, 22, 16, 12)))
    simulated("heavy-tail.svg", "No signal, but a few very large entries", heavy_tail())


def trained() -> None:
    """One weight of the BERT, with the two words that matter."""
    report = hf_rmt.analyze(demo_model_path(), target_modules=[LAYER])
    fit = report[LAYER].fit
    figure = spectrum_figure(fit, title=f"{LAYER} of a trained BERT")
    axes = figure.axes[0]
    edge = float(np.sqrt(fit.upper_edge))
    top = axes.get_ylim()[1]
    axes.text(0.5 * edge, 0.12 * top, "noise", ha="center", fontsize=15, fontweight="bold")
    axes.text(1.08 * edge, 0.3 * top, "signal", ha="left", fontsize=15, fontweight="bold")
    save_figure(figure, HERE / "signal-and-noise.svg")


def noise(spikes: tuple[float, ...] = ()) -> np.ndarray:
    """A matrix whose noise has two variances, with spikes if any are given."""
    return double_bulk_matrix(SHAPE, mixing=0.4, variances=(3.0, 1.0), spikes=spikes, seed=0)


def heavy_tail() -> np.ndarray:
    """A matrix of Student t entries with three degrees of freedom, scaled to variance 1/N."""
    entries = np.random.default_rng(0).standard_t(3, size=SHAPE)
    return entries / np.sqrt(3 * SHAPE[0])


def simulated(name: str, title: str, weight: np.ndarray) -> None:
    """Fit and draw a matrix; the verdict stands in the title."""
    fit = fit_weight(weight, fit_double_bulk)
    save_figure(spectrum_figure(fit, title=f"{title}\nverdict: {fit.phase}"), HERE / name)


if __name__ == "__main__":
    main()
