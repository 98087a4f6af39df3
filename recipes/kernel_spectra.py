"""Compare kernels of wide networks with their theory: errors, and eigenvalues in one figure.

    python recipes/kernel_spectra.py --embedded
    python recipes/kernel_spectra.py --sizes 128 256 512 1024 --figure kernel_spectra.svg

The data are n draws of a two-class Gaussian mixture with p = n features, so nothing is downloaded.
The kernels are CK (conjugate) and NTK (neural tangent). The theory gives each a simpler matrix K~,
its equivalent. There are four tables. `exact` compares the exact kernels of one relu layer with K~,
as published (Gu et al., 2022) and as derived in this package. `networks` compares K~ of deeper and
smoother networks with exact kernels and with networks drawn at random. `steps` lists the step
activations that match other activations. `ternary` compares the dense network with ternary networks
that have matched steps. --figure plots the eigenvalues of random networks and those of the theory.
--embedded takes small sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.command import parser_of, run
from workbench.writing import replaced

import numpy as np

from hf_rmt.kernels import (
    Kernels,
    NoMatchError,
    conjugate_kernel_equivalent,
    exact_kernels,
    match_step_activation,
    match_ternary_activation,
    mixture_statistics,
    ntk_equivalent,
)
from hf_rmt.kernels.simulation import gaussian_mixture, simulated_kernels
from hf_rmt.report.figures.style import finish, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NETWORKS = (
    ("relu",),
    ("gelu",),
    ("tanh",),
    ("relu",) * 2,
    ("relu",) * 3,
    ("gelu",) * 3,
)
MATCHED = ("relu", "gelu", "silu", "tanh", "sigmoid")
TAU = 1.0


def main() -> None:
    """Print the tables and draw the figure."""
    arguments = parser().parse_args()
    if arguments.embedded:
        arguments.sizes, arguments.seeds, arguments.width = [32, 64], 1, 4
        arguments.samples, arguments.features = 64, 2000
    if "exact" in arguments.tables:
        exact_table(arguments.sizes, arguments.seeds)
    if "networks" in arguments.tables:
        networks_table(arguments.sizes, arguments.width)
    if "steps" in arguments.tables:
        steps_table()
    if "ternary" in arguments.tables:
        ternary_table(arguments.samples, arguments.features, arguments.sparsity)
    if arguments.figure:
        with replaced(arguments.figure) as part:
            save_figure(spectra_figure(arguments.samples, arguments.width), part)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--embedded", action="store_true", help="all tables at small sizes")
    names = ("exact", "networks", "steps", "ternary")
    made.add_argument("--tables", nargs="*", choices=names, default=names, help="tables to print")
    made.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512, 1024], help="sizes n")
    made.add_argument("--seeds", type=int, default=3, help="number of mixtures per size")
    made.add_argument(
        "--width",
        type=int,
        default=256,
        help="width of the random networks, in units of n; 0 for no networks",
    )
    made.add_argument(
        "--samples", type=int, default=300, help="p = n of the ternary table and of the figure"
    )
    made.add_argument("--features", type=int, default=120_000, help="width of ternary networks")
    made.add_argument("--sparsity", type=float, default=0.9, help="share of zeros in the weights")
    made.add_argument("--figure", type=Path, help="file for the figure, .svg, .pdf or .png")
    return made


def exact_table(sizes: Sequence[int], seeds: int) -> None:
    """Print the table `exact`: distances of one relu layer's kernels from their equivalents."""
    print(f"one relu layer, exact kernel against K~, mean of {seeds} mixtures")
    print(f"{'':6}{'published':>18}{'order 1':>18}{'order 2':>20}")
    print(f"{'p = n':6}" + f"{'CK':>10}{'NTK':>8}" * 2 + f"{'CK':>11}{'NTK':>9}")
    for size in sizes:
        rows = []
        for seed in range(seeds):
            data, _ = gaussian_mixture((size, size), seed=seed)
            exact = exact_kernels(data, ["relu"])
            rows.append(
                distances(exact, data, ["relu"], published=True)
                + distances(exact, data, ["relu"])
                + distances(exact, data, ["relu"], order=2)
            )
        cells = np.mean(rows, axis=0)
        print(
            f"{size:<6}"
            + "".join(f"{a:10.4f}{b:8.4f}" for a, b in cells[:4].reshape(2, 2))
            + f"{cells[4]:11.5f}{cells[5]:9.5f}",
            flush=True,
        )


def networks_table(sizes: Sequence[int], width: int) -> None:
    """Print the table `networks`: distances of K~ from exact kernels and from drawn networks."""
    print("\nCK and NTK against K~, exact" + (f" and drawn, {width} n wide" if width else ""))
    print(f"{'':24}{'exact kernels':^38}" + f"{'drawn network':^54}" * bool(width))
    header = f"{'network':18}{'p = n':>6}{'order 1':>18}{'order 2':>18}"
    print(header + f"{'order 1':>18}{'order 2':>18}{'exact':>18}" * bool(width))
    for activations in NETWORKS:
        for size in sizes:
            data, _ = gaussian_mixture((size, size), seed=0)
            exact = exact_kernels(data, activations)
            cells = [distances(exact, data, activations, order=order) for order in (1, 2)]
            if width:
                options = {"width": width * size, "tangent": True, "seed": 1}
                drawn = simulated_kernels(data, activations, **options)
                cells += [distances(drawn, data, activations, order=order) for order in (1, 2)]
                cells.append(both(exact, drawn))
            print(
                f"{' '.join(activations):18}{size:6}"
                + "".join(f"{a:10.4f}{b:8.4f}" for a, b in cells),
                flush=True,
            )


def distances(
    kernels: Kernels,
    data: np.ndarray,
    activations: Sequence[str],
    *,
    order: int = 1,
    published: bool = False,
) -> tuple[float, float]:
    """Relative distances of CK and NTK from their equivalents K~, in operator norm."""
    options = {"order": order, "published": published}
    theory = Kernels(
        conjugate_kernel_equivalent(data, activations, **options),
        ntk_equivalent(data, activations, **options),
    )
    return both(theory, kernels)


def both(kernels: Kernels, references: Kernels) -> tuple[float, float]:
    """Relative distances of CK and NTK from those of `references`."""
    return (
        relative(kernels.conjugate, references.conjugate),
        relative(kernels.tangent, references.tangent),
    )


def relative(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Operator norm of the difference, divided by the operator norm of the reference."""
    return float(norm(kernel - reference) / norm(reference))


def norm(symmetric: np.ndarray) -> float:
    """Operator norm of a symmetric matrix: its largest absolute eigenvalue."""
    return float(np.abs(np.linalg.eigvalsh(symmetric)[[0, -1]]).max())


def steps_table() -> None:
    """Print the table `steps`: residual and ridge of steps, and the levels for an exact tau."""
    print(
        f"\n{'activation':12}{'residual':>12}{'ridge':>8}{'levels':>8}{'residual':>12}   published"
    )
    for name in MATCHED:
        one = match_step_activation(name, tau=TAU)
        many = match_step_activation(name, tau=TAU, levels=None)
        print(
            f"{name:12}{one.residual:12.1e}{one.identity_shift:8.3f}{many.levels:8}"
            f"{many.residual:12.1e}   {_published(name)}"
        )


def _published(name: str) -> str:
    try:
        return f"{match_step_activation(name, tau=TAU, levels=2, published=True).residual:.1e}"
    except NoMatchError as error:
        return f"none, residual {error.residual:.2g}"


def ternary_table(samples: int, features: int, sparsity: float) -> None:
    """Print the table `ternary`: distances of ternary networks' kernels from the dense one's."""
    data, _ = gaussian_mixture((samples, samples), seed=1)
    tau = mixture_statistics(data).tau
    exact = exact_kernels(data, ["relu"]).conjugate
    dense = simulated_kernels(data, ["relu"], width=features, seed=2).conjugate
    steps = {
        "relu": "relu",
        "one level": match_step_activation("relu", tau=tau),
        "three values": match_ternary_activation("relu", tau=tau),
    }
    for levels in (7, 15):
        steps[f"{levels} levels"] = match_step_activation("relu", tau=tau, levels=levels)
    steps["1{|x| > 1}"] = lambda x: np.where(np.abs(x) > 1, 1.0, 0.0)
    print(
        f"\np = n = {samples}, {features} features, sparsity {sparsity}; centred CK against a "
        "drawn dense relu network and against its exact kernel"
    )
    print(f"{'activation':14}{'modulo identity':>24}{'as it is':>24}")
    print(f"{'':14}" + f"{'drawn':>12}{'exact':>12}" * 2)
    print(
        f"{'dense relu':14}{'':>12}{modulo(dense, exact):12.4f}{'':>12}{plain(dense, exact):12.4f}"
    )
    for name, step in steps.items():
        kernel = simulated_kernels(
            data, [step], width=features, sparsity=sparsity, seed=3
        ).conjugate
        cells = [error(kernel, to) for error in (modulo, plain) for to in (dense, exact)]
        print(f"{name:14}" + "".join(f"{cell:12.4f}" for cell in cells), flush=True)


def centred(kernel: np.ndarray) -> np.ndarray:
    """The kernel K with rows and columns of mean 0: P K P with P = I - 11'/n."""
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def plain(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Relative distance of a kernel from a reference after both are centred."""
    return relative(centred(kernel), centred(reference))


def modulo(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Like `plain`, but the multiple of P (see `centred`) that is nearest is subtracted first."""
    difference = centred(kernel - reference)
    eigenvalues = np.linalg.eigvalsh(difference)
    others = np.delete(eigenvalues, np.abs(eigenvalues).argmin())  # drop the constant vector's 0
    return float((others[-1] - others[0]) / 2 / norm(centred(reference)))


def spectra_figure(samples: int, width: int, *, dark: bool = False) -> Figure:
    """Eigenvalues of the CK and the NTK: drawn networks as bars, the theory as an outline.

    Args:
        samples: n, the number of samples and of features.
        width: Width of the networks divided by n.
        dark: Whether the background is dark.

    Returns:
        The figure: one row for a relu layer, one for three gelu layers.
    """
    data, _ = gaussian_mixture((samples, samples), seed=0)
    figure = new_figure(7.0, 4.6, dark=dark)
    with styled(dark=dark) as colours:
        grid = figure.subplots(2, 2)
        for row, activations in zip(grid, (("relu",), ("gelu",) * 3), strict=True):
            drawn = simulated_kernels(
                data, activations, width=width * samples, tangent=True, seed=1
            )
            theory = Kernels(
                conjugate_kernel_equivalent(data, activations, order=2),
                ntk_equivalent(data, activations, order=2),
            )
            label = f"{len(activations)} x {activations[0]}"
            _draw(row[0], f"CK, {label}", drawn.conjugate, theory.conjugate, colours)
            _draw(row[1], f"NTK, {label}", drawn.tangent, theory.tangent, colours)
        grid[0, 0].legend()
        for axes in grid.flat:
            finish(axes, colours)
    return figure


def _draw(axes: Axes, title: str, drawn: np.ndarray, theory: np.ndarray, colours) -> None:
    simulated, predicted = (np.linalg.eigvalsh(kernel) for kernel in (drawn, theory))
    bins = np.linspace(0, max(simulated[-1], predicted[-1]) * 1.05, 61)
    axes.hist(simulated, bins, color=colours.noise, label="network of random weights")
    axes.hist(predicted, bins, histtype="step", color=colours.law, label="theory")
    marks = {"color": colours.spike, "linestyle": "", "marker": "v", "markersize": 4}
    axes.plot(predicted[-2:], [0, 0], clip_on=False, label="its two largest", **marks)
    axes.set(title=title, xlabel="eigenvalue", ylabel="count", yscale="symlog")


if __name__ == "__main__":
    run(main)
