from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_rmt.compression.calibration.batches import ROW_DIMENSIONS, Batches, mappings, run_batch
from hf_rmt.compression.model import compress
from hf_rmt.settings import CompressionSettings


@pytest.mark.parametrize("ids", [[[1, 2], [3, 4]], ((1, 2), (3, 4)), np.array([[1, 2], [3, 4]])])
def test_lists_become_tensors(ids: Any) -> None:
    (batch,) = mappings([{"input_ids": ids, "labels": None}])
    assert torch.equal(batch["input_ids"], torch.tensor([[1, 2], [3, 4]]))
    assert batch["labels"] is None


def test_a_row_of_a_data_set_gets_the_side_of_the_batch() -> None:
    (batch,) = mappings([{"input_ids": [1, 2], "attention_mask": [1, 1]}])
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (1, 2),
        "attention_mask": (1, 2),
    }


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"input_ids": [[1, 2], [3]]}, "different lengths"),
        ({"input_ids": ["a text"]}, "is a list of strs.*return_tensors='pt'"),
        ({"input_ids": "a text"}, "is 'a text'.*return_tensors='pt'"),
        ({"input_ids": 3}, "is 3 and no tensor"),
        ({"input_ids": [torch.tensor([1, 2])]}, "is a list of Tensors.*DataLoader with a collator"),
        ({"input_ids": np.array([[1], [2, 3]], dtype=object)}, "different lengths.*batch_size=8"),
        ({"input_ids": torch.zeros(0, 3)}, "is empty"),
        ({}, "is empty"),
        ({"input_ids": torch.ones(1, 2), "attention_mask": torch.zeros(1, 2)}, "padding only"),
    ],
)
def test_what_cannot_be_used_names_the_batch(batch: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"number 1.*{words}"):
        list(mappings([{"input_ids": [[1]]}, batch]))


@pytest.mark.parametrize("batch", [{"input": torch.tensor([9])}, {"nothing": torch.tensor([1])}])
def test_what_the_model_refuses_names_the_batch(batch: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="number 4, with"):
        run_batch(nn.Embedding(3, 2), batch, 4)


@pytest.mark.parametrize("key", ROW_DIMENSIONS)
@pytest.mark.parametrize("made", [torch.tensor, np.array, list], ids=["torch", "numpy", "list"])
def test_a_row_of_any_kind_becomes_a_batch_of_one(key: str, made: Any) -> None:
    entry = np.ones((2,) * ROW_DIMENSIONS[key]).tolist()
    for label in (1, np.int64(1), made([1, 2])):
        row = {key: made(entry), "labels": label, "text": "a", "flag": True}
        (batch,) = mappings([row])
        assert batch[key].shape == (1, *(2,) * ROW_DIMENSIONS[key])
        assert batch["labels"].shape[0] == 1
        assert (batch["text"], batch["flag"]) == ("a", True)
        (again,) = mappings([batch])
        assert again[key].shape == batch[key].shape


def test_lists_of_floats_have_the_precision_of_models() -> None:
    (batch,) = mappings([{"inputs_embeds": [[[0.5, 1.0]]]}])
    assert batch["inputs_embeds"].dtype == torch.float32


@pytest.mark.parametrize("batches", [{"train": [1]}, [[1, 2]], [torch.ones(2)], 3])
def test_what_are_no_batches_is_a_type_error(batches: Any) -> None:
    with pytest.raises(TypeError, match=r"one split of a data set|with_format|got one int"):
        list(mappings(batches))


class Embedded(nn.Module):
    """A model of ids whose layer wants a side of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(50, 48), nn.Linear(48, 64)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        _, _ = input_ids.shape
        return self.layer(self.embedding(input_ids) * attention_mask[..., None])


class Rows:
    """Rows that can be gone through again, as those of a data set, and are no sequence."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


@pytest.mark.parametrize("made", [torch.tensor, np.array, list], ids=["torch", "numpy", "list"])
@pytest.mark.parametrize("size", [0, 1, 4], ids=["rows", "batches of 1", "batches of 4"])
@pytest.mark.parametrize("kind", [Rows, list, iter], ids=["data set", "list", "iterator"])
def test_every_format_of_a_data_set_calibrates_a_model(made: Any, size: int, kind: Any) -> None:
    ids = np.random.default_rng(0).integers(0, 50, (8, 12))
    parts = list(ids) if size == 0 else np.split(ids, 8 // size)
    rows = [
        {"input_ids": made(part.tolist()), "attention_mask": made(np.ones_like(part).tolist())}
        for part in parts
    ]
    torch.manual_seed(0)
    model = Embedded()
    settings = CompressionSettings(method="svd", rank=4, noise="drop", target_modules=["layer"])
    report = compress(model, settings, calibration=kind(rows))
    assert [layer.reason for layer in report.plan.compressed] == [""]


def test_batches_can_be_gone_through_again() -> None:
    batches = Batches(Rows([{"input_ids": [1, 2]}]))
    for _ in range(2):
        assert [tuple(batch["input_ids"].shape) for batch in batches] == [(1, 2)]
