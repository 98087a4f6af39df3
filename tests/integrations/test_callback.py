from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

from hf_rmt import RMTConfig, SpikedLinear, compress
from hf_rmt.compression import compress_weight
from hf_rmt.integrations.callback import RMTCallback
from hf_rmt.integrations.lora_targets import lora_targets
from hf_rmt.integrations.start import START_FILE
from tests.integrations.models import tiny_model
from tests.integrations.training import arguments, classifier, sentences

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # in PEFT

QUERY = "bert.encoder.layer.0.attention.self.query"
STEPS = 8
"""Update steps of an epoch: 64 sentences, 8 at a time."""
RUN_TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


class Watcher(TrainerCallback):
    """Weights of one layer after every step, and what reports are given."""

    def __init__(self) -> None:
        self.weights: dict[int, torch.Tensor] = {}
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = model.get_submodule(QUERY).weight.detach().clone()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        self.logs.append({**logs, "step": state.global_step})


class Power(TrainerCallback):
    """Cuts the power after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def fine_tune(
    folder: Path, *callbacks: TrainerCallback, model: Any = None, resume: Any = None, **changes: Any
) -> Trainer:
    trainer = Trainer(
        classifier() if model is None else model,
        arguments(folder, **changes),
        train_dataset=sentences(),
        eval_dataset=sentences(16),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rank(matrix: torch.Tensor) -> int:
    values = torch.linalg.svdvals(matrix.double())
    return int((values > 1e-6 * values[0]).sum())


def logits(model: Any) -> torch.Tensor:
    batch = torch.stack([entry["input_ids"] for entry in sentences(8)])
    with torch.no_grad():
        return model.eval()(batch).logits


def spiked_layers(model: nn.Module) -> dict[str, SpikedLinear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, SpikedLinear)}


def comparable(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: log[key] for key in log if key not in RUN_TIMES} for log in history]


def spectra(trainer: Trainer) -> list[dict[str, float]]:
    return [log for log in trainer.state.log_history if "rmt/spikes" in log]


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
    expected = compress_weight(QUERY, weight, config).module(weight, None).dense()
    assert torch.equal(after.weights[4], expected.detach())
    assert not torch.equal(after.weights[4], weight)


def test_later_filters_keep_the_rank_and_do_not_shrink_the_spikes_again(tmp_path: Path) -> None:
    config = RMTConfig(noise="drop", noise_removal=0.7)
    before, after = Watcher(), Watcher()
    fine_tune(tmp_path, before, RMTCallback(config, schedule=1), after)
    first = compress_weight(QUERY, before.weights[1], config)
    assert first.left is not None
    kept = first.left.shape[1]
    assert {rank(weight) for weight in after.weights.values()} == {kept}
    left, values, right = torch.linalg.svd(before.weights[2].double())
    best = left[:, :kept] * values[:kept] @ right[:kept]
    assert torch.allclose(after.weights[2].double(), best, atol=1e-6)


def test_stored_noise_is_quantised_in_place(tmp_path: Path) -> None:
    config, before, after = RMTConfig(noise="int4"), Watcher(), Watcher()
    fine_tune(tmp_path, before, RMTCallback(config, schedule=5), after)
    weight = before.weights[10]
    expected = compress_weight(QUERY, weight, config).module(weight, None).dense()
    assert torch.equal(after.weights[10], expected.detach())


def test_spikes_are_recovered_once_beside_stored_noise_too(tmp_path: Path) -> None:
    config, before, after = RMTConfig(recover_spikes=True), Watcher(), Watcher()
    fine_tune(tmp_path, before, RMTCallback(config, schedule=1), after)
    for step, recovers in ((1, True), (2, False)):
        weight = before.weights[step]
        once = RMTConfig(recover_spikes=recovers)
        expected = compress_weight(QUERY, weight, once).module(weight, None).dense()
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
        callbacks=[report, RMTCallback()],
    )
    trainer.train()
    assert [log["step"] for log in report.logs if "rmt/spikes" in log] == [0, 4, 6]


def test_a_layer_without_spikes_is_left_alone(tmp_path: Path) -> None:
    model = classifier()
    noise = torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 10
    model.get_submodule(QUERY).weight.data.copy_(noise)
    trainer = fine_tune(tmp_path, RMTCallback(), model=model, learning_rate=0.0)
    assert torch.equal(trainer.model.get_submodule(QUERY).weight, noise)
    entry = trainer.model.config.quantization_config.layers[QUERY]
    assert not entry["compressed"]
    assert "no signal stands out" in entry["reason"]
    assert entry["bits"] == entry["dense_bits"]


@pytest.mark.parametrize("noise", ["drop", "int8"])
def test_the_saved_model_is_compact_and_reloads_exactly(tmp_path: Path, noise: str) -> None:
    config = RMTConfig(noise=noise)
    trainer = fine_tune(tmp_path, RMTCallback(config))
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
    assert entry["dropped_energy"] < 1e-6


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
    expected = weight if filtered else fresh.module(weight, None).dense()
    assert torch.allclose(acts, expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["epoch", 3])
@pytest.mark.parametrize("of", ["weights", "update"])
@pytest.mark.parametrize("killed_at", [5, 8])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, schedule: Any, of: Any, killed_at: int
) -> None:
    config = RMTConfig(noise="drop", noise_removal=0.5)
    saving = {"save_strategy": "steps", "save_steps": killed_at, "num_train_epochs": 3}

    def callback() -> RMTCallback:
        return RMTCallback(config, schedule=schedule, of=of)

    whole = fine_tune(tmp_path / "whole", callback(), **saving)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path / "killed", callback(), Power(killed_at), **saving)
    checkpoint = str(tmp_path / "killed" / f"checkpoint-{killed_at}")
    saving["restore_callback_states_from_checkpoint"] = killed_at == 8
    resumed = fine_tune(
        tmp_path / "killed", callback(), model=classifier(), resume=checkpoint, **saving
    )
    found, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert comparable(resumed.state.log_history) == comparable(whole.state.log_history)


def test_an_update_is_filtered_and_the_pretrained_part_left_alone(tmp_path: Path) -> None:
    watcher, start = Watcher(), classifier().get_submodule(QUERY).weight.detach()
    trainer = fine_tune(tmp_path, RMTCallback(of="update", schedule="end"), watcher)
    update = watcher.weights[16] - start
    filtered = compress_weight(QUERY, update, RMTConfig(noise="drop"))
    weight = trainer.model.get_submodule(QUERY).weight
    assert torch.equal(weight, start + filtered.module(update, None).dense())
    assert 0 < rank(filtered.module(update, None).dense()) < 30
    assert not torch.equal(weight, watcher.weights[16])
    assert not spiked_layers(trainer.model)
    assert not hasattr(trainer.model.config, "quantization_config")


def test_an_update_may_gain_directions_and_loses_none_of_its_first(tmp_path: Path) -> None:
    watcher, start = Watcher(), classifier().get_submodule(QUERY).weight.detach()
    fine_tune(tmp_path, RMTCallback(of="update", schedule=4), watcher, num_train_epochs=4)
    ranks = [rank(watcher.weights[step] - start) for step in range(4, 33, 4)]
    assert min(ranks) >= ranks[0]


def test_the_start_of_a_resumed_run_must_be_the_one_it_had(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5}
    fine_tune(tmp_path, RMTCallback(of="update"), **saving)
    checkpoint = str(tmp_path / "checkpoint-5")
    other = tmp_path / "other"
    fine_tune(other, RMTCallback(of="update"), model=classifier(1), save_strategy="epoch")
    start = tmp_path / START_FILE
    start.write_bytes((tmp_path / "checkpoint-5" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds others"):
        fine_tune(tmp_path, RMTCallback(of="update"), resume=checkpoint, **saving)
    start.unlink()
    with pytest.raises(FileNotFoundError, match="put it back beside the checkpoints"):
        fine_tune(tmp_path, RMTCallback(of="update"), resume=checkpoint, **saving)


def test_spectra_reach_every_report_and_leave_the_losses_alone(tmp_path: Path) -> None:
    report, eye = Watcher(), Watcher()
    trainer = fine_tune(tmp_path, report, RMTCallback(schedule=6), eye)
    logged = [log for log in report.logs if "rmt/spikes" in log]
    assert [log["step"] for log in logged] == [0, 6, 12, 16]
    assert [log["step"] for log in report.logs if "loss" in log] == list(range(1, 17))
    for key in ("spikes", "upper_edge", "signal_energy", "stable_rank", "phase"):
        layers = [name for name in logged[0] if name.startswith("rmt/bert") and key in name]
        assert len(layers) == 6
        mean = sum(logged[0][name] for name in layers) / 6
        assert logged[0][f"rmt/{key}"] == pytest.approx(mean)
    assert logged[1]["rmt/signal_energy"] < 0.5 < logged[2]["rmt/signal_energy"]
    assert spectra(trainer) == logged
    assert not any(name.startswith("rmt/bert") for log in eye.logs for name in log)
    assert sum("rmt/spikes" in log for log in eye.logs) == 4


def test_logged_numbers_are_those_of_the_fit(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fine_tune(tmp_path, watcher, RMTCallback(schedule=6))
    fit = compress_weight(QUERY, watcher.weights[6], RMTConfig(noise="drop")).fit
    assert fit is not None
    log = spectra(trainer)[1]
    assert log[f"rmt/{QUERY}/spikes"] == fit.n_spikes
    assert log[f"rmt/{QUERY}/upper_edge"] == fit.upper_edge
    assert log[f"rmt/{QUERY}/signal_energy"] == fit.signal_energy
    assert log[f"rmt/{QUERY}/stable_rank"] == fit.stable_rank
    phases = ["random", "bulk+spikes", "heavy-tailed", "degenerate"]
    assert log[f"rmt/{QUERY}/phase"] == phases.index(fit.phase)


def test_nothing_is_logged_when_told_so(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(log=False))
    assert spectra(trainer) == []


def test_bfloat16_autocast_trains_and_reloads(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(), bf16=True, num_train_epochs=1)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    states = saved.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schedule": "day"}, ValueError, "schedule must be 'epoch', 'end' or at least 1 step"),
        ({"schedule": 0}, ValueError, "at least 1 step, got 0"),
        ({"schedule": True}, TypeError, "a number of steps, got True"),
        ({"of": "noise"}, ValueError, "of must be 'weights' or 'update', got 'noise'"),
        ({"config": "drop"}, TypeError, "config must be an RMTConfig, got 'drop'"),
    ],
)
def test_bad_arguments_are_refused(change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        RMTCallback(**change)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_training_is_refused_when_the_trainer_is_made(tmp_path: Path, kind: str) -> None:
    class Sharded(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            setattr(self, f"is_{kind}_enabled", True)

    with pytest.raises(ValueError, match=f"(?i){kind} shards them.*train with DDP"):
        Sharded(classifier(), arguments(tmp_path), callbacks=[RMTCallback()])


def test_a_compressed_model_and_an_adapter_are_refused(tmp_path: Path) -> None:
    model = classifier()
    compress(model, RMTConfig())
    with pytest.raises(ValueError, match="quantized already"):
        fine_tune(tmp_path, RMTCallback(), model=model)
    adapted = get_peft_model(classifier(), LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="frozen beneath an adapter"):
        fine_tune(tmp_path, RMTCallback(), model=adapted)


def test_a_loaded_compressed_model_trains_its_signal_and_keeps_its_noise(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path / "dense")
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "dense", quantization_config=RMTConfig()
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = fine_tune(tmp_path, model=model)
    after = trainer.model.state_dict()
    noise = [key for key in before if ".noise." in key]
    assert noise
    assert all(torch.equal(before[key], after[key]) for key in noise)
    factors = [f"{name}.weight" for name in spiked_layers(model)]
    assert all(not torch.equal(before[key], after[key]) for key in factors)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(saved), logits(model))


def test_lora_trains_beside_the_noise_and_reloads_exactly(tmp_path: Path) -> None:
    model = classifier()
    compress(model, RMTConfig(target_modules="all-linear", min_size=24, max_rank=4))
    model.save_pretrained(tmp_path / "base")
    targets = lora_targets(model)
    assert set(targets["target_parameters"]) == {f"{name}.weight" for name in spiked_layers(model)}
    adapted = get_peft_model(model, LoraConfig(r=2, **targets))
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    trainer = fine_tune(tmp_path, model=adapted, learning_rate=1e-2)
    changed = {
        key for key, value in trainer.model.state_dict().items() if not value.equal(before[key])
    }
    assert changed == {key for key in before if "lora_" in key}
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    plain = logits(base)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(reloaded), logits(trainer.model))
    assert not torch.equal(logits(reloaded), plain)
    assert torch.allclose(logits(reloaded.merge_and_unload()), logits(trainer.model), atol=1e-6)


def test_layers_that_stayed_dense_are_lora_targets_as_usual() -> None:
    model = classifier()
    model.get_submodule(QUERY).weight.data.fill_(0.5)
    compress(model, RMTConfig())
    targets = lora_targets(model)
    assert targets["target_modules"] == [QUERY]
    assert f"{QUERY}.weight" not in targets["target_parameters"]
    adapted = get_peft_model(model, LoraConfig(r=2, **targets))
    assert any(QUERY in name and "lora_A" in name for name, _ in adapted.named_parameters())


def test_a_layer_without_signal_is_no_lora_target() -> None:
    model = classifier()
    noise = torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 10
    model.get_submodule(QUERY).weight.data.copy_(noise)
    compress(model, RMTConfig())
    assert spiked_layers(model)[QUERY].rank == 0
    targets = lora_targets(model)
    assert f"{QUERY}.weight" not in targets["target_parameters"]
    assert len(targets["target_parameters"]) == 5


def test_a_dense_model_has_no_lora_targets() -> None:
    with pytest.raises(ValueError, match="no compressed layer with a signal"):
        lora_targets(classifier())
