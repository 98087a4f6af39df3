"""What `RMTCallback` leaves to save: a compact model that reloads exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_rmt import RMTConfig
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import QUERY, Watcher, fine_tune, logits, rank

STEPS = 8
"""Update steps of an epoch: 64 sentences, 8 at a time."""


@pytest.mark.parametrize("noise", ["drop", "int8"])
def test_the_saved_model_is_compact_and_reloads_exactly(tmp_path: Path, noise: str) -> None:
    config = RMTConfig(noise=noise)
    trainer = fine_tune(tmp_path, RMTCallback(config, schedule="epoch"))
    assert config.layers is None
    assert len(spiked_layers(trainer.model)) == 6
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(saved), logits(trainer.model))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    entry = config["quantization_config"]["layers"][QUERY]
    assert entry["rank"] == spiked_layers(saved)[QUERY].rank
    assert entry["phase"] in ("bulk+spikes", "heavy-tailed")
    assert trainer.evaluate()["eval_loss"] > 0


def test_compacting_a_filtered_model_changes_nothing(tmp_path: Path) -> None:
    before, after = Watcher(), Watcher()
    trainer = fine_tune(tmp_path, before, RMTCallback(schedule="epoch"), after)
    acts = trainer.model.get_submodule(QUERY).dense()
    assert torch.allclose(acts, after.weights[16], atol=1e-6)
    entry = trainer.model.config.quantization_config.layers[QUERY]
    first = compress_weight(QUERY, before.weights[8], RMTConfig(noise="drop")).plan
    assert (entry["n_spikes"], entry["upper_edge"]) == (first.n_spikes, first.upper_edge)
    # what the first filter took is what was lost, and the compaction took nothing more
    assert entry["dropped_energy"] == pytest.approx(first.dropped_energy)
    assert first.dropped_energy > 0.1


@pytest.mark.parametrize(("schedule", "filtered"), [("epoch", True), (12, False)])
def test_compacting_comes_after_the_best_model_was_loaded(
    tmp_path: Path, schedule: Any, filtered: bool
) -> None:
    best_first = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = fine_tune(
        tmp_path,
        RMTCallback(schedule=schedule),
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        learning_rate=2e-3,
        **best_first,
    )
    assert trainer.state.best_global_step == STEPS
    best = load_file(Path(trainer.state.best_model_checkpoint, "model.safetensors"))
    weight = best[f"{QUERY}.weight"]
    assert (rank(weight) < 10) == filtered
    acts = trainer.model.get_submodule(QUERY).dense()
    fresh = compress_weight(QUERY, weight, RMTConfig(noise="drop"))
    expected = weight if filtered else fresh.layer(weight).dense()
    assert torch.allclose(acts, expected, atol=1e-6)


def test_bfloat16_autocast_trains_and_reloads(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(schedule="epoch"), bf16=True, num_train_epochs=1)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    states = saved.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
