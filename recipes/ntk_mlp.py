"""Compare accuracy and memory of ternary fully connected networks with those of other networks.

    python recipes/ntk_mlp.py --embedded
    python recipes/ntk_mlp.py --data_dir FOLDER
    python recipes/ntk_mlp.py --data_dir cifar10.npz --features MODEL --image_size 70

FOLDER holds the idx files of MNIST. For CIFAR-10 name an .npz file with train_x, train_y, test_x
and test_y.
Without --data_dir the images come from the Hub; with --embedded they come from scikit-learn.
--features replaces the pixels by the class tokens of a ViT-like model.

The study follows the figure of Gu et al. (2022). Each network has three hidden layers x -> s(W x) /
sqrt d, with random weights W, width d and a centred activation s. This is the case of the theorem.
A readout, the last linear layer, is fitted by ridge regression. The images are centred and have
norm 1. Our layers have ternary weights and steps with the Gaussian moments of relu (see
`hf_rmt.kernels.GaussianMoments`). The `exact` steps have the same m1, m2, m3 and tau, with as many
levels as this needs. The `1 bit` steps have another tau. After two such layers no step of one level
has the moments of relu. So each step is matched at the scale of the dense network, and its output
is scaled to that of the dense layer. The other methods start from the Gaussian weights of the dense
network, and their weights are scaled to variance 1 again. Their readouts are fitted, too. Nothing
is trained by gradients.

With --trained a dense network of each width is trained by SGD instead, without hidden biases. Every
method starts from the trained weights. Our method makes them ternary, with a scale for each row,
and matches the steps at the scale of the inputs of each activation. All readouts are fitted again.
The theorem does not cover this case.

Memory counts hidden weights, readout, mean image and the activations of one image. The dense
network takes 32 bits for each number. All other networks take 16 bits for each number of the
readout and the mean image. For weights and activations the tables show the bits. `packed` counts
2 bits for a ternary weight, as `TernaryLinear` holds it. A pruned weight takes one bit of a mask,
and 32 bits more if it is kept. `coded` counts the size of a file: the mask is Huffman coded by
zlib, and a ternary weight has one bit for its sign. (Random weights could be drawn again from their
seed. This would help all methods equally, so it is not counted.)

A second run continues from the results in the output folder, and the tables show all results. To
fill the table at equal memory, run single --methods again with other --widths.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from workbench.command import parser_of
from workbench.command import run as start
from workbench.data.vectors import Split, read_splits
from workbench.models.mlp_layers import (
    DENSE,
    DEPTH,
    FLOAT,
    METHODS,
    Method,
    hidden_layers,
    value_bits,
    weight_bits,
)
from workbench.models.ridge import Rows, fit_ridge
from workbench.processes import one_process
from workbench.report.accuracy import paired_bootstrap
from workbench.report.memory_study import MEGABIT, Finished, draw_curves
from workbench.report.result_figures import save_table
from workbench.report.results import Result, ResultsTable
from workbench.training.mlp_trained import trained_layers, trained_network
from workbench.writing import write_figure, write_text

import numpy as np
import torch
from torch import nn

from hf_rmt.report.tables import markdown_table

HALF = 16
BATCH = 2000


def main() -> None:
    one_process()
    arguments = parser().parse_args()
    split = read_splits(arguments)
    own = ("output_dir", "widths", "seeds", "methods")
    setting = {key: value for key, value in vars(arguments).items() if key not in own}
    finished = Finished(arguments.output_dir, setting)
    for method, width, seed in product(arguments.methods, arguments.widths, arguments.seeds):
        key = f"{method}, width {width}, seed {seed}"
        if key not in finished.rows:
            row = {"method": method, "width": width, "seed": seed}
            finished.add(key, row | run(arguments, split, METHODS[method], width, seed))
            print(f"{key}: {finished.rows[key]['accuracy']:.4f}", flush=True)
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in sorted(finished.rows.values(), key=order_of):
        runs.setdefault((row["method"], row["width"]), []).append(row)
    kind = "trained" if arguments.trained else "random"
    report(finished.folder, runs, split, f"{DEPTH} {kind} hidden layers on {split.name}")


def order_of(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """The key by which the runs are sorted in the tables: method, width and seed."""
    return list(METHODS).index(row["method"]), row["width"], row["seed"]


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__)
    made.add_argument("--data_dir", help="local files; default: the Hub")
    made.add_argument("--task", choices=("mnist", "cifar10"), default="mnist", help="which images")
    made.add_argument("--embedded", action="store_true", help="scikit-learn's digits, no Hub")
    made.add_argument("--features", help="model whose class tokens are classified")
    made.add_argument(
        "--image_size", type=int, default=70, help="side of the images for that model, in pixels"
    )
    made.add_argument("--trained", action="store_true", help="hidden layers trained by SGD")
    made.add_argument("--epochs", type=int, default=20, help="epochs of that training")
    made.add_argument("--output_dir", default="results/ntk-mlp", help="folder for all results")
    made.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[250, 500, 1000, 2000],
        help="widths of the hidden layers",
    )
    made.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; one run for each"
    )
    made.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="rows of the tables"
    )
    made.add_argument(
        "--selection_samples", type=int, default=1000, help="training images to choose the ridge on"
    )
    return made


def run(
    arguments: argparse.Namespace, split: Split, method: Method, width: int, seed: int
) -> dict[str, Any]:
    """The results of one network: its accuracy and its size in bits."""
    inputs = split.train.features.shape[1]
    if arguments.trained:
        folder = Path(arguments.output_dir)
        net = trained_network(split, width, seed, epochs=arguments.epochs, folder=folder)
        rows = torch.from_numpy(split.train.features[:BATCH])
        layers = trained_layers(method, net, rows, seed)
    else:
        layers = hidden_layers(method, (inputs, *[width] * DEPTH), seed)
    parts = (split.train, split.kept, split.test)
    train, kept, test = (Rows(features(layers, part.features), part.targets) for part in parts)
    readout = fit_ridge(train, kept, lambda found, wanted: -correct(found, wanted).mean())
    number = FLOAT if method == METHODS[DENSE] else HALF
    if number == HALF:
        readout = readout._replace(weights=readout.weights.astype(np.float16).astype("f4"))
    right = correct(readout(test.features), test.targets)
    packed, coded = np.sum([weight_bits(layer.linear) for layer in layers], axis=0)
    return {
        "accuracy": float(right.mean()),
        "correct": np.packbits(right).tobytes().hex(),
        "strength": readout.strength,
        "packed": int(packed),
        "coded": int(coded),
        "activations": sum(width * value_bits(layer.activation) for layer in layers),
        "readout": number * readout.weights.size + FLOAT * len(readout.offset) + number * inputs,
    }


@torch.no_grad()
def features(layers: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """The outputs of the last hidden layer."""
    batches = torch.from_numpy(inputs).split(BATCH)
    return torch.cat([layers(batch) for batch in batches]).numpy()


def correct(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each image, whether the largest output belongs to the right class."""
    return found.argmax(1) == wanted.argmax(1)


def total(row: Mapping[str, Any], kind: str = "coded") -> float:
    """Megabits of a network: weights (packed or coded), readout, mean image and activations."""
    return (row[kind] + row["readout"] + row["activations"]) / MEGABIT


def report(folder: Path, runs: Mapping[tuple[str, int], Any], split: Split, title: str) -> None:
    """Write the table by width, the table at equal memory, and the figure."""
    images = len(split.test.targets)
    curves: dict[str, list[tuple[float, float]]] = {}
    for (method, _), rows in runs.items():
        point = total(rows[0]), float(np.mean([row["accuracy"] for row in rows]))
        curves.setdefault(method, []).append(point)
    count = len(split.train.targets) + len(split.kept.targets)
    notes = (
        *memory_lines(runs),
        f"{count} images, {len(split.kept.targets)} of them to choose the ridge; {images} to test",
        "intervals: paired bootstrap over the test images, all seeds of an image together",
    )
    table = ResultsTable(results_of(runs, images), title=title, notes=notes)
    save_table(table, folder)
    print(table)
    text = markdown_table(equal_memory(runs))
    write_text(folder / "equal-memory.md", text)
    print(f"\nOur widest networks that need no more memory (coded) than the others:\n\n{text}")
    panels = {"memory (Mbit, coded)": curves}
    figure = draw_curves(panels, metric="test accuracy", title=title)
    write_figure(figure, folder, "memory")


def results_of(runs: Mapping[tuple[str, int], Any], images: int) -> tuple[Result, ...]:
    """Accuracies at the widths of the dense networks, or at all widths if there is none."""
    compared = {width for method, width in runs if method == DENSE}
    results = []
    for (method, width), rows in runs.items():
        if compared and width not in compared:
            continue
        right = [unpacked(row["correct"], images) for row in rows]
        dense = runs.get((DENSE, width), [])
        about: dict[str, Any] = {}
        if method != DENSE and [row["seed"] for row in dense] == [row["seed"] for row in rows]:
            base = [unpacked(row["correct"], images) for row in dense]
            interval = paired_bootstrap(right, base)
            about = {"difference": interval.mean, "interval": interval[1:]}
        values = tuple(row["accuracy"] for row in rows)
        results.append(Result(method, f"width {width}", values, **about))
    return tuple(results)


def unpacked(code: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(code), np.uint8), count=count)


def memory_lines(runs: Mapping[tuple[str, int], Any]) -> list[str]:
    """The memory of every network and its ratio to the dense one of the same width."""
    lines = []
    for (method, width), (row, *_) in runs.items():
        sizes = {kind: f"{total(row, kind):.3g} Mbit {kind}" for kind in ("packed", "coded")}
        if (DENSE, width) in runs:
            dense = runs[DENSE, width][0]
            for kind in sizes:
                sizes[kind] += f" (1/{total(dense, kind) / total(row, kind):.1f})"
        bits = row["activations"] // (DEPTH * width)
        lines.append(f"{method}, {width}: {', '.join(sizes.values())}, {bits}-bit activations")
    return lines


def equal_memory(runs: Mapping[tuple[str, int], Any]) -> list[dict[str, Any]]:
    """For each other network, its accuracy and that of our widest networks of no more memory."""
    lines = []
    widths: dict[str, list[int]] = {}
    for method, width in runs:
        if METHODS[method].is_ours:
            widths.setdefault(method, []).append(width)
    means = {key: np.mean([row["accuracy"] for row in rows]) for key, rows in runs.items()}
    for (method, width), (row, *_) in runs.items():
        if METHODS[method].weights == "ternary":
            continue
        line = {"compared": f"{method}, {width}", "Mbit": f"{total(row):.3g}"}
        line["accuracy"] = f"{means[method, width]:.4f}"
        for ours, tried in widths.items():
            fitting = [other for other in tried if total(runs[ours, other][0]) <= total(row)]
            best = max(fitting, default=None)
            line[ours] = None if best is None else f"{means[ours, best]:.4f} ({best})"
        lines.append(line)
    return lines


if __name__ == "__main__":
    start(main)
