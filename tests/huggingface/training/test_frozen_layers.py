"""`RMTCallback` and weights that a training does not train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import QUERY, classifier, fine_tune


@pytest.mark.parametrize("callback", [lambda: RMTCallback(size=0.5), RMTCallback.published])
def test_frozen_layers_stay_as_they_are(
    callback: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier()
    frozen = model.bert.encoder.layer[0].attention.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    trainer = fine_tune(tmp_path, callback(), model=model)
    assert all(torch.equal(before[key], tensor) for key, tensor in frozen.state_dict().items())
    assert {name.rpartition(".layer.0.")[2] for name in spiked_layers(trainer.model)} == {
        *("intermediate.dense", "output.dense"),
    }
    assert "frozen, so RMTCallback leaves these layers as they are" in caplog.text
    alone = classifier()
    alone.requires_grad_(False)
    alone.classifier.requires_grad_(True)
    with pytest.raises(ValueError, match=r"all 6 selected layers of this .* are frozen"):
        fine_tune(tmp_path / "alone", callback(), model=alone)


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    model = classifier()
    model.bert.embeddings.requires_grad_(False)
    model.get_submodule(QUERY).requires_grad_(False)
    before = {name: part.requires_grad for name, part in model.named_parameters()}
    frozen = copy.deepcopy(model.bert.embeddings.state_dict())
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4), model=model)
    after = {name: part.requires_grad for name, part in trainer.model.named_parameters()}
    assert after == before
    state = trainer.model.bert.embeddings.state_dict()
    assert all(torch.equal(state[key], frozen[key]) for key in frozen)
    # a layer that no gradient reaches is not worth nothing for that
    entry = trainer.model.config.quantization_config.layers[QUERY]
    assert entry["rank"] > 1 or entry["outcome"] == "kept"
