"""A small set of sentence pairs that needs no network."""

from __future__ import annotations

from itertools import product

import datasets

WHO = ("farmer", "nurse", "painter", "soldier", "teacher", "tailor", "sailor", "judge", "baker")
DID = ("bought", "lost", "found", "described", "carried", "hid")
KINDS = {
    "an animal": ("a horse", "a goat", "a parrot", "a rabbit"),
    "an instrument": ("a violin", "a trumpet", "a flute", "a drum"),
    "a tool": ("a hammer", "a saw", "a chisel", "a spade"),
    "a vehicle": ("a truck", "a bicycle", "a tractor", "a van"),
}


def entailment() -> dict[str, datasets.Dataset]:
    """A small set of sentence pairs with columns text, text2, label, in splits train and dev.

    A sentence about a thing entails the same sentence about the kind of the thing, and about no
    other kind. The two verbs of the dev pairs do not occur in the train pairs.
    """
    splits: dict[str, list[dict[str, str]]] = {"train": [], "dev": []}
    for number, (who, did, kind) in enumerate(product(WHO, DID, KINDS)):
        other = [name for name in KINDS if name != kind][number % 3]
        thing = KINDS[kind][number % 4]
        for claimed, label in ((kind, "entailment"), (other, "not_entailment")):
            pair = {"text": f"The {who} {did} {thing}.", "text2": f"The {who} {did} {claimed}."}
            splits["dev" if did in DID[-2:] else "train"].append(pair | {"label": label})
    return {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
