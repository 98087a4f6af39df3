"""Noise that `RMTCallback()` scales down beside directions which the training's inputs choose."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from hf_rmt import RMTConfig
from hf_rmt.compression.calibration.calibrated import WHOLE
from hf_rmt.compression.calibration.excited import cut
from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.compression.calibration.ranks import ranks_that_lose
from hf_rmt.huggingface.training import annealed_filter, choice
from hf_rmt.huggingface.training.annealed_filter import PROBES_FILE
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.models import tiny_model
from tests.huggingface.test_convolutions_training import fine_tune as fine_tune_resnet
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import (
    QUERY,
    Watcher,
    classifier,
    fine_tune,
    logits,
    rank,
)

STEPS = 16


def noise_left(trainer: Trainer) -> dict[int, float]:
    logs = trainer.state.log_history
    return {log["step"]: log["rmt/noise_left"] for log in logs if "rmt/noise_left" in log}


def test_the_noise_falls_to_nothing_and_the_model_that_trained_is_saved(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4), watcher)
    left = noise_left(trainer)
    assert left[10] == 1.0
    assert left[15] == 0.0  # after 0.6 and 0.95 of 16 steps
    assert sorted(left.values(), reverse=True) == list(left.values())
    layers = spiked_layers(trainer.model)
    assert rank(watcher.weights[10]) == 48
    assert rank(watcher.weights[STEPS]) == layers[QUERY].rank < 24
    for name, layer in layers.items():
        if name == QUERY:
            torch.testing.assert_close(layer.dense(), watcher.weights[STEPS], rtol=0, atol=1e-6)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(saved), logits(trainer.model))


@pytest.mark.parametrize("lost", [1e-3, 0.2])
def test_the_default_keeps_what_the_batches_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float
) -> None:
    asked = []

    def spy(allowed: float, worth: Any, shapes: Any) -> Any:
        asked.append((allowed, ranks_that_lose(allowed, worth, shapes)))
        return asked[-1][1]

    monkeypatch.setattr(choice, "LOST", lost)
    monkeypatch.setattr(choice, "ranks_that_lose", spy)
    trainer = fine_tune(tmp_path, RMTCallback())
    plan = trainer.model.compression_report.plan
    assert asked == [(lost, {layer.name: layer.rank for layer in plan})]
    assert 0 < plan.parameter_share < (0.6 if lost == 1e-3 else 0.2)
    shares = [log["rmt/parameter_share"] for log in trainer.state.log_history if "rmt/rank" in log]
    assert shares
    assert all(share == pytest.approx(plan.parameter_share) for share in shares)


def test_a_model_whose_directions_all_count_stays_dense_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "LOST", 0.0)
    trainer = fine_tune(tmp_path, RMTCallback())
    (said,) = [record.getMessage() for record in caplog.records if "size='auto'" in record.msg]
    assert "keeps 100 % of the parameters" in said
    assert "pass size=0.5" in said
    assert not spiked_layers(trainer.model)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(saved), logits(trainer.model))


def test_the_plan_says_what_the_choice_gave_up(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fine_tune(tmp_path, RMTCallback(size=0.3), watcher, save_strategy="epoch")
    probes = load_file(tmp_path / PROBES_FILE.format(step=10))
    weight = watcher.weights[10]
    signal = cut(weight, probes[f"{QUERY} left"], probes[f"{QUERY} right"], 0.0)
    lost = ((weight - signal).norm() / weight.norm()) ** 2
    entry = trainer.model.config.quantization_config.layers[QUERY]
    assert entry["dropped_energy"] == pytest.approx(float(lost), rel=1e-4)
    assert lost > 0.01


def test_directions_are_chosen_again_by_later_batches_at_the_same_ranks(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fine_tune(tmp_path, RMTCallback(size=0.3), watcher, save_strategy="epoch")
    found = [load_file(tmp_path / PROBES_FILE.format(step=step)) for step in (10, 12, 15)]
    ranks = {name: probe.shape for name, probe in found[0].items()}
    for earlier, later in itertools.pairwise(found):
        assert {name: probe.shape for name, probe in later.items()} == ranks
        assert all(not torch.equal(earlier[name], later[name]) for name in ranks)
    kept = [found[-1][f"{QUERY} {side}"] for side in ("left", "right")]
    weight = trainer.model.get_submodule(QUERY).dense()
    torch.testing.assert_close(cut(weight, *kept, 0.0), weight, rtol=0, atol=1e-6)


def test_a_layer_that_no_later_batch_reaches_keeps_its_directions(tmp_path: Path) -> None:
    model, names = classifier(), [QUERY, QUERY.replace("query", "key")]
    moments = {
        name: LayerMoments(*(torch.eye(side) for side in model.get_submodule(name).weight.T.shape))
        for name in names
    }
    chosen = choice.choose(model, names, moments, RMTConfig(noise="drop"), 0.3)
    again = choice.probes_again(model, chosen.layers, {QUERY: moments[QUERY]})
    assert set(again) == {f"{QUERY} left", f"{QUERY} right"}
    assert all(torch.equal(again[key], chosen.probes[key]) for key in again)  # the same moments


def test_factors_are_balanced(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(size=0.3))
    for layer in spiked_layers(trainer.model).values():
        left, right = layer.factors()
        torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-3, atol=1e-5)


def test_the_rule_of_a_config_finds_the_ranks_where_no_size_is_given(tmp_path: Path) -> None:
    config = RMTConfig(method="svd", rank=5, noise="drop")
    trainer = fine_tune(tmp_path, RMTCallback(config))
    assert {layer.rank for layer in spiked_layers(trainer.model).values()} == {5}
    found = fine_tune(tmp_path, RMTCallback(RMTConfig(noise="drop")))
    entries = found.model.config.quantization_config.layers
    assert all(entry["rank"] == entry["n_spikes"] for entry in entries.values())


def test_equal_ends_remove_the_noise_at_once(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4, anneal=(5, 5)), watcher)
    kept = spiked_layers(trainer.model)[QUERY].rank
    assert [step for step in (4, 5, 9, 16) if rank(watcher.weights[step]) == kept] == [5, 9, 16]


def test_only_evaluations_without_noise_count_for_the_best_model(tmp_path: Path) -> None:
    trainer = fine_tune(
        tmp_path,
        RMTCallback(size=0.4, anneal=(0.2, 0.5)),
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first evaluations are the best
    )
    assert trainer.state.best_global_step is not None
    assert trainer.state.best_global_step >= 8
    best = load_file(Path(trainer.state.best_model_checkpoint, "model.safetensors"))
    acts = trainer.model.get_submodule(QUERY).dense()
    torch.testing.assert_close(acts, best[f"{QUERY}.weight"], rtol=0, atol=1e-6)


def test_training_that_stops_early_loses_the_rest_of_the_noise_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
    }
    stop = EarlyStoppingCallback(early_stopping_patience=3)
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4, anneal=(4, 16)), stop, **early)
    assert trainer.state.global_step < STEPS
    assert "is that of step 2 and still has 100 % of its noise" in caplog.text
    # the best model is cut along the directions that were chosen, not along those of its weights
    assert trainer.state.best_global_step == 2
    best = load_file(Path(trainer.state.best_model_checkpoint, "model.safetensors"))
    probes = load_file(tmp_path / PROBES_FILE.format(step=4))
    pair = probes[f"{QUERY} left"], probes[f"{QUERY} right"]
    expected = cut(best[f"{QUERY}.weight"], *pair, 0.0)
    acts = trainer.model.get_submodule(QUERY).dense()
    torch.testing.assert_close(acts, expected, rtol=0, atol=1e-6)


class StopAt(TrainerCallback):
    """Ends a training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_training_that_ends_before_the_choice_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4, anneal=(100, 200)))
    # the schedule ends with the training, so the choice falls on its last step
    assert len(spiked_layers(trainer.model)) == 6
    assert len(spiked_layers(fine_tune(tmp_path, RMTCallback(size=0.4), max_steps=1).model)) == 6
    one = fine_tune(tmp_path, RMTCallback(size=0.4, anneal=(8, 12)), StopAt(4))
    assert "training ended after step 4" in caplog.text
    assert not spiked_layers(one.model)
    assert not hasattr(one.model.config, "quantization_config")


def test_a_size_without_room_is_refused_before_any_step(tmp_path: Path) -> None:
    watcher = Watcher()
    with pytest.raises(ValueError, match=r"size=0\.001 allows .* one direction per layer needs"):
        fine_tune(tmp_path, RMTCallback(size=0.001), watcher)
    assert not watcher.weights


def test_gathering_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    plain, watched = Watcher(), Watcher()
    fine_tune(tmp_path, plain)
    fine_tune(tmp_path, RMTCallback(size=0.4, anneal=(10, 16)), watched)
    assert all(torch.equal(plain.weights[step], watched.weights[step]) for step in range(1, 11))


@pytest.mark.parametrize("change", [{"bf16": True}, {"activation_checkpointing": True}])
def test_mixed_precision_and_checkpointing_train_and_reload(tmp_path: Path, change: Any) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(size=0.4), **change)
    assert len(spiked_layers(trainer.model)) == 6
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    states = saved.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_convolutions_are_chosen_by_their_patches(tmp_path: Path) -> None:
    trainer = fine_tune_resnet(tmp_path, RMTCallback(size=0.4), num_train_epochs=2)
    plan = trainer.model.compression_report.plan
    assert plan.parameter_share <= 0.4
    assert len(plan.compressed) > 3


def test_a_text_to_text_model_from_nothing_trains_and_shrinks(tmp_path: Path) -> None:
    tokens = torch.randint(3, 50, (32, 7), generator=torch.Generator().manual_seed(0))
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    model = T5ForConditionalGeneration(tiny_model("t5").config)
    model.config.decoder_start_token_id = 0
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4, **settings
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[RMTCallback(size=0.35)],
    )
    trainer.train()
    plan = trainer.model.compression_report.plan
    assert plan.parameter_share <= 0.35
    assert all(layer.compressed or layer.reason == WHOLE for layer in plan)


@pytest.mark.parametrize(("limit", "warns"), [(0.0, True), (1.0, False)])
def test_a_share_that_saves_little_is_told_with_what_else_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: float,
    warns: bool,
) -> None:
    monkeypatch.setattr(annealed_filter, "MOSTLY_DENSE", limit)
    fine_tune(tmp_path, RMTCallback())
    said = [text for text in caplog.messages if "size='auto' keeps" in text]
    assert len(said) == warns
    assert all("noise='int4'" in text and "size=0.5" in text for text in said)
