"""`RMTCallback` on a ResNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ResNetForImageClassification, Trainer, set_seed

from hf_rmt import RMTConfig
from hf_rmt.compression.weight import compress_weight
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from hf_rmt.nn import SpikedConv2d
from tests.huggingface.models import SHORTCUT, STRIDED, pictures, tiny_model
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import arguments


def classifier(family: str = "resnet") -> ResNetForImageClassification:
    set_seed(0)
    base = tiny_model(family)
    model = ResNetForImageClassification(base.config)
    model.resnet.load_state_dict(base.state_dict())
    return model


def fine_tune(folder: Path, callback: RMTCallback, **changes: Any) -> Trainer:
    examples = [
        {"pixel_values": picture, "labels": index % 2} for index, picture in enumerate(pictures(16))
    ]
    trainer = Trainer(
        classifier(),
        arguments(folder, **({"num_train_epochs": 1} | changes)),
        train_dataset=examples,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def test_training_filters_convolutions_and_leaves_a_compact_model(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(schedule=1, log="layers"))
    layers = spiked_layers(trainer.model)
    assert f"resnet.{STRIDED}" in layers
    assert all(
        type(layer) is SpikedConv2d and layer.noise.kind == "drop" for layer in layers.values()
    )
    (log,) = [log for log in trainer.state.log_history if log["step"] == 2 and "rmt/spikes" in log]
    assert f"rmt/resnet.{STRIDED}/spikes" in log
    trainer.save_model(str(tmp_path / "saved"))
    again = ResNetForImageClassification.from_pretrained(tmp_path / "saved")
    model = trainer.model.eval()
    assert torch.equal(again(pictures()).logits, model(pictures()).logits)


def test_the_filter_in_training_is_that_of_compress(tmp_path: Path) -> None:
    """With a learning rate of zero the filtered kernel is that of the start."""
    config = RMTConfig(noise="drop", noise_removal=0.1, target_modules=["layer.0.convolution"])
    trainer = fine_tune(tmp_path, RMTCallback(config, schedule="end"), learning_rate=0.0)
    kernel = classifier().get_submodule(f"resnet.{STRIDED}").weight.detach()
    expected = compress_weight(STRIDED, kernel.flatten(1), config).rewritten
    found = trainer.model.get_submodule(f"resnet.{STRIDED}").weight
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-5)


def test_filtering_what_training_added_keeps_the_start(tmp_path: Path) -> None:
    callback = RMTCallback(RMTConfig(noise="drop", max_rank=1), target="update", schedule="end")
    trainer = fine_tune(tmp_path, callback, learning_rate=1e-2)
    start = classifier()
    for name in (f"resnet.{STRIDED}", f"resnet.{SHORTCUT}"):
        added = trainer.model.get_submodule(name).weight - start.get_submodule(name).weight
        values = torch.linalg.svdvals(added.detach().flatten(1).double())
        assert values[1] < 1e-4 * values[0] or values[0] == 0
