"""What `RMTCallback` filters, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from hf_rmt import RMTConfig
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.models import tiny_model
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import (
    QUERY,
    Watcher,
    arguments,
    classifier,
    fine_tune,
    rank,
    sentences,
    spectra,
)


@pytest.mark.parametrize(
    ("schedule", "steps"), [("epoch", [8, 16]), (3, [3, 6, 9, 12, 15]), ("end", [])]
)
def test_weights_are_filtered_on_the_schedule_and_not_between(
    tmp_path: Path, schedule: Any, steps: list[int]
) -> None:
    watcher = Watcher()
    fine_tune(tmp_path, RMTCallback(schedule=schedule), watcher)
    filtered = [step for step, weight in watcher.weights.items() if rank(weight) < 10]
    assert filtered == steps


def test_steps_count_updates_under_gradient_accumulation(tmp_path: Path) -> None:
    watcher = Watcher()
    callback = RMTCallback(schedule="epoch")
    fine_tune(tmp_path, callback, watcher, gradient_accumulation_steps=3)
    filtered = [step for step, weight in watcher.weights.items() if rank(weight) < 10]
    assert filtered == [3, 6]


def test_the_first_filter_is_the_one_of_compress(tmp_path: Path) -> None:
    before, after, config = Watcher(), Watcher(), RMTConfig(noise="drop", noise_removal=0.7)
    fine_tune(tmp_path, before, RMTCallback(config, schedule=4), after)
    weight = before.weights[4]
    expected = compress_weight(QUERY, weight, config).layer(weight).dense()
    assert torch.equal(after.weights[4], expected.detach())
    assert not torch.equal(after.weights[4], weight)


def test_later_filters_keep_the_rank_and_do_not_shrink_the_spikes_again(tmp_path: Path) -> None:
    config = RMTConfig(noise="drop", noise_removal=0.7)
    before, after = Watcher(), Watcher()
    fine_tune(tmp_path, before, RMTCallback(config, schedule=1), after)
    first = compress_weight(QUERY, before.weights[1], config)
    assert first.build.left is not None
    kept = first.build.left.shape[1]
    assert {rank(weight) for weight in after.weights.values()} == {kept}
    left, values, right = torch.linalg.svd(before.weights[2].double())
    best = left[:, :kept] * values[:kept] @ right[:kept]
    assert torch.allclose(after.weights[2].double(), best, atol=1e-6)


def test_stored_noise_is_quantised_in_place(tmp_path: Path) -> None:
    config, before, after = RMTConfig(noise="int4"), Watcher(), Watcher()
    fine_tune(tmp_path, before, RMTCallback(config, schedule=5), after)
    weight = before.weights[10]
    expected = compress_weight(QUERY, weight, config).layer(weight).dense()
    assert torch.equal(after.weights[10], expected.detach())


def test_spikes_are_recovered_once_beside_stored_noise_too(tmp_path: Path) -> None:
    config, before, after = RMTConfig(recover_spikes=True), Watcher(), Watcher()
    fine_tune(tmp_path, before, RMTCallback(config, schedule=1), after)
    for step, recovers in ((1, True), (2, False)):
        weight = before.weights[step]
        once = RMTConfig(recover_spikes=recovers)
        expected = compress_weight(QUERY, weight, once).layer(weight).dense()
        assert torch.equal(after.weights[step], expected.detach())


class Endless(IterableDataset):
    """Four batches a pass, and no length to tell so beforehand."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(sentences(32))


def test_an_epoch_of_unknown_length_is_filtered_when_it_ends(tmp_path: Path) -> None:
    report = Watcher()
    trainer = Trainer(
        classifier(),
        arguments(tmp_path, max_steps=6),
        train_dataset=Endless(),
        callbacks=[report, RMTCallback(schedule="epoch")],
    )
    trainer.train()
    assert [log["step"] for log in report.logs if "rmt/spikes" in log] == [0, 4, 6]


def test_a_layer_without_spikes_is_left_alone(tmp_path: Path) -> None:
    model = classifier()
    noise = torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 10
    model.get_submodule(QUERY).weight.data.copy_(noise)
    trainer = fine_tune(tmp_path, RMTCallback(schedule="epoch"), model=model, learning_rate=0.0)
    assert torch.equal(trainer.model.get_submodule(QUERY).weight, noise)
    entry = trainer.model.config.quantization_config.layers[QUERY]
    assert entry["outcome"] == "kept"
    assert "no signal stands out" in entry["reason"]
    assert entry["bits"] == entry["dense_bits"]


def test_an_update_is_filtered_and_the_pretrained_part_left_alone(tmp_path: Path) -> None:
    watcher, start = Watcher(), classifier().get_submodule(QUERY).weight.detach()
    trainer = fine_tune(tmp_path, RMTCallback(target="update", schedule="end"), watcher)
    update = watcher.weights[16] - start
    filtered = compress_weight(QUERY, update, RMTConfig(noise="drop"))
    weight = trainer.model.get_submodule(QUERY).weight
    assert torch.equal(weight, start + filtered.layer(update).dense())
    assert 0 < rank(filtered.layer(update).dense()) < 30
    assert not torch.equal(weight, watcher.weights[16])
    assert not spiked_layers(trainer.model)
    assert not hasattr(trainer.model.config, "quantization_config")


def test_an_update_may_gain_directions_and_loses_none_of_its_first(tmp_path: Path) -> None:
    watcher, start = Watcher(), classifier().get_submodule(QUERY).weight.detach()
    fine_tune(tmp_path, RMTCallback(target="update", schedule=4), watcher, num_train_epochs=4)
    ranks = [rank(watcher.weights[step] - start) for step in range(4, 33, 4)]
    assert min(ranks) >= ranks[0]


def test_the_text_to_text_trainer_is_served_too(tmp_path: Path) -> None:
    tokens = torch.randint(3, 50, (16, 7), generator=torch.Generator().manual_seed(0))
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    model = tiny_model("t5")
    model.config.decoder_start_token_id = 0
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(str(tmp_path), num_train_epochs=1, **settings),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[RMTCallback(schedule=1)],
    )
    trainer.train()
    assert len(spiked_layers(trainer.model)) > 6
    assert len(spectra(trainer)) == 3
