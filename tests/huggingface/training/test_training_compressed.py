"""Training of compressed models, their factors or LoRA beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from hf_rmt import RMTConfig, compress
from hf_rmt.huggingface.lora.targets import lora_targets
from tests.huggingface.test_quantizer import spiked_layers
from tests.huggingface.training.training import QUERY, classifier, fine_tune, logits

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # in PEFT


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
