from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_rmt import RMTConfig, compress, filter_update
from hf_rmt.compression.refilter import NO_UPDATE
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from tests.huggingface.training.training import arguments, classifier, sentences

ROWS, COLUMNS, RANK = 240, 160, 3


def trained(folder: Path, *callbacks: Any) -> nn.Module:
    settings = arguments(folder, num_train_epochs=1)
    trainer = Trainer(classifier(), settings, train_dataset=sentences(), callbacks=list(callbacks))
    trainer.train()
    return trainer.model


def blocks() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Linear(COLUMNS, ROWS), nn.Linear(ROWS, COLUMNS)
    return nn.ModuleList([nn.Sequential(first), nn.Sequential(second)])


def tuned_blocks(base: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A copy whose first update is of low rank with noise, whose second is noise only."""
    tuned = copy.deepcopy(base)
    first, second = (tuned[index][0].weight.data for index in range(2))
    left = torch.linalg.qr(torch.randn(ROWS, RANK)).Q
    right = torch.linalg.qr(torch.randn(COLUMNS, RANK)).Q
    signal = left @ torch.diag(torch.tensor([3.0, 2.0, 1.5])) @ right.T
    noise = 0.02 * torch.randn(ROWS, COLUMNS)
    first += signal + noise
    second += 0.02 * torch.randn(COLUMNS, ROWS)
    return tuned, signal, noise


@pytest.mark.parametrize("noise", ["drop", "int8"])
def test_filtering_afterwards_is_what_the_callback_does_at_the_end(
    tmp_path: Path, noise: str
) -> None:
    config = RMTConfig(noise=noise)
    expected = trained(tmp_path, RMTCallback(config, target="update", schedule="end"))
    tuned = trained(tmp_path)
    before = copy.deepcopy(tuned.state_dict())
    filter_update(classifier(), tuned, config)
    states = expected.state_dict(), tuned.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[1][key], before[key]) for key in before)


def test_the_base_may_be_a_path_and_lack_the_head(tmp_path: Path) -> None:
    folder, base = tmp_path / "base", classifier()
    base.bert.save_pretrained(folder)
    tuned = trained(tmp_path)
    from_path, from_model = copy.deepcopy(tuned), copy.deepcopy(tuned)
    reports = filter_update(folder, from_path), filter_update(base, from_model)
    assert reports[0].plan == reports[1].plan
    states = from_path.state_dict(), from_model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(from_path.classifier.weight, tuned.classifier.weight)


def test_a_low_rank_update_is_recovered_better_than_the_noise_left_it() -> None:
    base = blocks()
    tuned, signal, noise = tuned_blocks(base)
    plan = filter_update(base, tuned).plan.layers[0]
    error = tuned[0][0].weight.detach() - base[0][0].weight.detach() - signal
    # Of iid noise the kept directions hold about rank (N + p) of the N p entries, twice at most
    # with what the spikes lose.
    share = 2 * RANK * (ROWS + COLUMNS) / (ROWS * COLUMNS)
    assert error.norm() ** 2 < share * noise.norm() ** 2
    assert plan.rank == RANK


def test_an_update_without_signal_is_dropped() -> None:
    base = blocks()
    tuned, _, _ = tuned_blocks(base)
    report = filter_update(base, tuned)
    dropped = report.plan.layers[1]
    assert torch.equal(tuned[1][0].weight, base[1][0].weight)
    assert (dropped.noise, dropped.dropped_energy) == ("drop", 1.0)
    assert dropped.reason == NO_UPDATE
    assert NO_UPDATE in str(report)


def test_spectra_are_those_of_the_updates_and_of_layers_large_enough() -> None:
    base = blocks()
    base.append(nn.Sequential(nn.Linear(8, 8)))
    tuned, _, _ = tuned_blocks(base)
    tuned[2][0].weight.data += 1
    before = tuned[2][0].weight.clone()
    report = filter_update(base, tuned)
    assert torch.equal(tuned[2][0].weight, before)
    assert [layer.name for layer in report.plan] == ["0.0", "1.0", "2.0"]
    shapes = [("0.0", (ROWS, COLUMNS)), ("1.0", (COLUMNS, ROWS))]
    assert [(layer.name, layer.shape) for layer in report.spectra] == shapes
    assert report.spectra["0.0"].fit.n_spikes == RANK


def test_layers_that_are_not_selected_stay_as_tuned() -> None:
    base = blocks()
    tuned, _, _ = tuned_blocks(base)
    before = tuned[1][0].weight.clone()
    report = filter_update(base, tuned, RMTConfig(noise="drop", modules_to_not_convert=["1.0"]))
    assert torch.equal(tuned[1][0].weight, before)
    assert [layer.name for layer in report.plan] == ["0.0"]
    assert [layer.name for layer in report.spectra] == ["0.0"]


def test_a_base_of_another_size_is_refused_by_the_name_of_the_layer() -> None:
    base, tuned = blocks(), blocks()
    base[1][0] = nn.Linear(ROWS, COLUMNS + 1)
    match = r"'1\.0\.weight' has shape \(160, 240\) in tuned and is of shape \(161, 240\) in base"
    with pytest.raises(ValueError, match=match):
        filter_update(base, tuned)


def test_a_selected_head_that_the_base_lacks_is_refused() -> None:
    tuned = classifier()
    config = RMTConfig(noise="drop", target_modules=["query", "classifier"])
    with pytest.raises(
        ValueError, match=r"'classifier\.weight' has shape .* and is missing in base"
    ):
        filter_update(tuned.bert, tuned, config)


def test_models_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="equal in all 6 selected layers"):
        filter_update(classifier(), classifier())


def test_a_compressed_base_is_refused() -> None:
    base = classifier()
    compress(base)
    with pytest.raises(ValueError, match="quantized already"):
        filter_update(base, classifier())


def test_a_compressed_tuned_model_and_a_path_to_one_are_refused() -> None:
    tuned = classifier()
    compress(tuned)
    with pytest.raises(ValueError, match="quantized already"):
        filter_update(classifier(), tuned)
    with pytest.raises(TypeError, match="needs a loaded model, got 'folder'"):
        filter_update(classifier(), "folder")


@pytest.mark.parametrize("changed", [0, 1])
def test_one_layer_that_training_changed_is_enough(changed: int) -> None:
    base = blocks()
    tuned, _, _ = tuned_blocks(base)
    other = 1 - changed
    tuned[other].load_state_dict(base[other].state_dict())
    filter_update(base, tuned)
    assert torch.equal(tuned[other][0].weight, base[other][0].weight)


def test_the_base_is_read_in_the_dtype_of_the_tuned_model() -> None:
    base = blocks()
    tuned, _, _ = tuned_blocks(base)
    tuned.bfloat16()
    expected = copy.deepcopy(tuned)
    filter_update(copy.deepcopy(base).bfloat16(), expected)
    filter_update(base, tuned)
    assert all(part.dtype == torch.bfloat16 for part in tuned.parameters())
    states = tuned.state_dict(), expected.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(ValueError, match="equal in all 2 selected layers"):
        filter_update(base, copy.deepcopy(base).bfloat16())


@pytest.mark.parametrize("told", [{}, {"dose": 0.5}, {"dose": "auto", "evaluate": lambda _: 1.0}])
def test_the_summary_says_that_the_model_stays_dense(told: dict[str, Any]) -> None:
    base = blocks()
    tuned, _, _ = tuned_blocks(base)
    report = filter_update(
        base, tuned, RMTConfig(noise="drop", target_modules="all-linear"), **told
    )
    assert "updates of 2 of 2 layers filtered, and all stay dense" in report.summary()
    assert "layers compressed" not in report.summary()
