"""Classification as text to text: the model reads a prompt and writes the word for the label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workbench.data.glue import spec_of

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import T5Config, T5Tokenizer

WORDS = {
    "rte": ("entailment", "not_entailment"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
}
"""For tasks whose labels are numbers, the words that the model writes instead."""
VOCABULARY = 4000
"""The most pieces (parts of words) in the vocabulary of a tokenizer that is made here."""
SMALL = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 512,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "decoder_start_token_id": 0,
}
"""The shape of a T5 that is trained from nothing."""


def words_of(task: str, labels: Sequence[str]) -> list[str]:
    """The word that the model writes for each label."""
    named = task in WORDS and all(label.isdecimal() for label in labels)
    return [WORDS[task][int(label)] if named else label for label in labels]


def text_to_text(
    rows: Dataset, task: str, words: Sequence[str], tokenizer: Any, max_length: int
) -> Dataset:
    """Rows with the tokens of each prompt, and those of the word to write."""
    encoded = tokenizer(prompts(rows, task), truncation=True, max_length=max_length)
    written = tokenizer(list(words))["input_ids"]
    return Dataset.from_dict({**encoded, "labels": [written[label] for label in rows["label"]]})


def prompts(rows: Dataset, task: str) -> list[str]:
    """The texts in the form on which T5 was trained: the task, then each text after its name."""
    names = dict(zip(("text", "text2"), spec_of(task).texts, strict=False))
    columns = [[f"{name}: {text}" for text in rows[key]] for key, name in names.items()]
    return [" ".join((task, *texts)) for texts in zip(*columns, strict=True)]


def classes(tokens: Any, tokenizer: Any, words: Sequence[str]) -> Any:
    """For each written text its position in `words`; -1 if it is not one of them."""
    texts = tokenizer.batch_decode(
        np.where(tokens < 0, tokenizer.pad_token_id, tokens), skip_special_tokens=True
    )
    return np.array([words.index(text) if text in words else -1 for text in texts])


def token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Cross entropy divided by the number of tokens in the whole batch.

    The loss of T5 itself divides by the number of tokens in the part of one process.
    """
    logits = outputs.logits.flatten(0, 1)
    total = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
    return total / num_items_in_batch


def made_tokenizer(texts: Sequence[str]) -> T5Tokenizer:
    """A tokenizer made from texts, the same in every process."""
    made = T5Tokenizer(extra_ids=0).train_new_from_iterator(texts, VOCABULARY)
    found = json.loads(made.backend_tokenizer.to_str())["model"]["vocab"]
    special = [piece for piece in found if piece[0] in made.all_special_tokens]
    others = [piece for piece in found if piece not in special]
    # equal scores have no fixed order, and processes would number the words differently
    others.sort(key=lambda piece: (-round(piece[1], 6), piece[0]))
    return T5Tokenizer(vocab=[tuple(piece) for piece in special + others], extra_ids=0)


def small_t5(tokenizer: Any, **options: Any) -> T5Config:
    """The settings of a small T5 that is trained from nothing, with the pieces of a tokenizer."""
    return T5Config(vocab_size=len(tokenizer), **SMALL, **options)
