"""What PEFT has put around a compressed model is taken away before it is saved, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import hf_rmt
from tests.huggingface.saving.test_before_saving import (  # noqa: F401 - the fixture is used by its name
    compressed,
    logits,
    no_picture,
    plans,
    reloaded,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
NAMES = {"target_modules": ["query", "classifier"]}


def of_names(model: Any) -> LoraConfig:
    return LoraConfig(r=2, **NAMES)


def of_factors(model: Any) -> LoraConfig:
    return LoraConfig(r=2, **hf_rmt.lora_targets(model))


def with_a_head(model: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])


ADAPTERS = [of_names, of_factors, with_a_head]


@pytest.mark.parametrize("config", ADAPTERS)
def test_what_a_deleted_adapter_leaves_is_no_part_of_the_model(
    config: Callable[[Any], LoraConfig], tmp_path: Path
) -> None:
    model = compressed()
    before = logits(model)
    model.add_adapter(config(model), "a")
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    model.delete_adapter("a")
    again = reloaded(model, tmp_path / "saved")
    assert torch.equal(logits(again), before)
    assert all(plan.compressed for plan in plans(again).values())


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("config", ADAPTERS)
def test_a_model_within_adapters_is_refused(
    config: Callable[[Any], LoraConfig], merged: bool, tmp_path: Path
) -> None:
    model = compressed()
    peft: Any = get_peft_model(model, config(model))
    if merged:
        peft.merge_adapter()
    with pytest.raises(ValueError, match=r"has an adapter of PEFT.*merge_and_unload\(\)"):
        peft.get_base_model().save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    if merged:
        peft.unmerge_adapter()
    reloaded(peft.merge_and_unload(), tmp_path / "saved")
