"""Compare ternary heads with steps and with activations, on the features of a trained BERT.

    python recipes/bench_heads.py --embedded
    python recipes/bench_heads.py --data_dir DATA/sst2 --train_sentences 1000

A head of two layers, like that of RoBERTa (tanh) or DistilBERT (relu), is trained on mean-pooled
sentences of the BERT of the extra `demo`. Then it is made ternary by `method="ntk"`, calibrated on
training sentences. For each activation the recipe prints the accuracy on dev sentences, how often
the head decides as the dense head does, and the correlation of their logits. `default` is
`activation="auto"`, which chooses by calibration rows that the fit did not see. --embedded trains
on a few built-in sentences, which only shows that the recipe runs.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from pathlib import Path

from workbench.command import parser_of, run
from workbench.data.glue import DataArguments, read_task

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.demo import SENTENCES, demo_model_path, embed

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": functional.gelu,
}
WAYS = {
    "steps": RMTConfig(method="ntk", activation="matched"),
    "kept": RMTConfig(method="ntk", activation="keep"),
    "default": RMTConfig(method="ntk"),
}
BATCH, EPOCHS, RATE = 32, 30, 1e-3
Rows = tuple[Tensor, Tensor]


class Head(nn.Module):
    """Dropout, a layer, an activation that is called as a function, dropout, a layer."""

    def __init__(self, width: int, labels: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.out_proj = nn.Linear(width, width), nn.Linear(width, labels)
        self.dropout, self.activation = nn.Dropout(0.1), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(x)))))


def main() -> None:
    options = parser().parse_args()
    logging.getLogger("hf_rmt").setLevel(logging.ERROR)
    train, dev = features(options)
    epochs = 2 if options.embedded else EPOCHS
    print(f"{'activation':12}{'seed':>5}  {'head':10}{'accuracy':>10}{'agrees':>9}{'logits':>9}")
    for name, activation in ACTIVATIONS.items():
        for seed in range(options.seeds):
            dense = trained(activation, train, seed, epochs)
            for way, found in {"dense": dense, **compressed(dense, train, options)}.items():
                numbers = "".join(f"{value:9.4f}" for value in compared(found, dense, dev))
                print(f"{name:12}{seed:5}  {way:10} {numbers}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The options of this recipe."""
    made = parser_of(__doc__ or "")
    made.add_argument("--embedded", action="store_true", help="built-in sentences, in seconds")
    made.add_argument("--data_dir", help="folder with SST-2, train and dev; default: the Hub")
    made.add_argument(
        "--train_sentences", type=int, default=1000, help="number of training sentences"
    )
    made.add_argument("--calibration", type=int, default=300, help="how many of them calibrate")
    made.add_argument("--seeds", type=int, default=3, help="number of trainings of a head")
    return made


def features(options: argparse.Namespace) -> tuple[Rows, Rows]:
    """Embeddings with labels: those to train on, and those to judge on."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    model = AutoModel.from_pretrained(demo_model_path()).eval()

    def embedded(texts: list[str], labels: list[int]) -> Rows:
        parts = [embed(model, tokenizer, texts[at : at + 32]) for at in range(0, len(texts), 32)]
        return torch.cat(parts).clone(), torch.tensor(labels)

    if options.embedded:
        rows = embedded([*SENTENCES], [number // 8 % 2 for number in range(len(SENTENCES))])
        return rows, rows
    folder = options.data_dir and str(Path(options.data_dir))
    splits = read_task(DataArguments(task=["sst2"], data_dir=folder), "sst2")
    train = splits["train"].shuffle(seed=0).select(range(options.train_sentences))
    found = [
        embedded(list(rows[rows.column_names[0]]), [int(label) for label in rows["label"]])
        for rows in (train, splits["dev"])
    ]
    return found[0], found[1]


def trained(activation: Callable[[Tensor], Tensor], rows: Rows, seed: int, epochs: int) -> Head:
    """A head trained by AdamW."""
    torch.manual_seed(seed)
    x, labels = rows
    head = Head(x.shape[1], int(labels.max()) + 1, activation).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(head(x[batch]), labels[batch]).backward()
            optimizer.step()
    return head.eval()


def compressed(dense: Head, rows: Rows, options: argparse.Namespace) -> dict[str, Head]:
    """Ternary copies of the head, one for each way to treat its activation."""
    batches = [{"x": part} for part in rows[0][: options.calibration].split(50)]
    heads = {way: copy.deepcopy(dense) for way in WAYS}
    for way, config in WAYS.items():
        hf_rmt.compress(heads[way], config, calibration=batches)
    return heads


@torch.no_grad()
def compared(head: Head, dense: Head, rows: Rows) -> tuple[float, float, float]:
    """Accuracy, share of decisions equal to the dense head's, and correlation with its logits."""
    x, labels = rows
    found, wanted = head(x), dense(x)
    choices = found.argmax(1)
    right, same = (choices == labels).float().mean(), (choices == wanted.argmax(1)).float().mean()
    found, wanted = found - found.mean(0), wanted - wanted.mean(0)
    return float(right), float(same), float((found * wanted).sum() / found.norm() / wanted.norm())


if __name__ == "__main__":
    run(main)
