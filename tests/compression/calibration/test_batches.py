from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_rmt.compression.calibration.batches import mappings, run_batch


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
        ({"input_ids": ["a text"]}, "return_tensors='pt'"),
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
