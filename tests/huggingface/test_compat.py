"""Contracts with what transformers and peft do not document."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, MambaConfig, MambaModel
from transformers.quantizers import auto

import hf_rmt
from hf_rmt.huggingface.compat import (
    adapter_layers,
    converted_parameters,
    refused_by_peft,
    saves_adapter_only,
    shed_adapters,
    teach_peft,
)
from hf_rmt.nn import TernaryLinear
from tests.huggingface.models import tiny_model


def test_conversions_of_checkpoints_are_known() -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with torch.device("meta"):
        model = Dinov2Model(Dinov2Config(use_swiglu_ffn=True, **sizes))
    found = converted_parameters(model)
    layers = {name.rpartition(".mlp.")[2] for name in found}
    assert layers == {"gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias"}
    assert set(found.values()) == {"Chunk"}


def test_peft_looks_its_last_dispatcher_up_by_name() -> None:
    lora = pytest.importorskip("peft.tuners.lora.model")
    assert lora.dispatch_default.knows_compressed
    before = lora.dispatch_default
    teach_peft(lora)  # a second time does nothing
    assert lora.dispatch_default is before
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2)
    layer = TernaryLinear.from_linear(nn.Linear(4, 4))
    made = lora.LoraModel._create_new_module(config, "default", layer, r=2, lora_alpha=2)
    assert type(made).__name__ == "CompressedLoraLinear"


def test_peft_names_what_it_refuses_of_mamba() -> None:
    pytest.importorskip("peft")
    with torch.device("meta"):
        model = MambaModel(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=10))
    assert refused_by_peft(model, "layers.0.mixer.out_proj")
    assert not refused_by_peft(model, "layers.0.mixer.in_proj")


def test_auto_classes_know_their_models_and_tasks_know_their_auto_classes() -> None:
    from transformers import AutoModelForSequenceClassification, BertConfig

    from hf_rmt.huggingface.compat import auto_mapping, task_of

    found = auto_mapping(AutoModelForSequenceClassification)[BertConfig]
    assert found.__name__ == "BertForSequenceClassification"
    assert task_of("AutoModelForSequenceClassification") == "text-classification"
    assert task_of("AutoModelForImageClassification") == "image-classification"
    assert task_of("AutoModel") is None


def test_loading_attributes_of_a_passed_config_are_taken() -> None:

    saved, passed = hf_rmt.RMTConfig(noise="int4"), hf_rmt.RMTConfig(layout="dense")
    assert auto.LOADING_ATTRIBUTES_CONFIG_TYPES.count(hf_rmt.RMTConfig) == 1
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        merged = auto.AutoHfQuantizer.merge_quantization_configs(saved.to_dict(), passed)
    assert (merged.noise, merged.layout) == ("int4", "dense")


def test_a_local_path_is_no_hub_id_even_if_the_folder_is_gone(tmp_path: Path) -> None:
    from hf_rmt.huggingface.saving.card import hub_id

    assert hub_id("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert [hub_id(str(tmp_path)), hub_id(f"{tmp_path}/gone"), hub_id(r"C:\gone"), hub_id("")] == [
        None,
        None,
        None,
        None,
    ]


def test_a_model_knows_where_it_came_from(tmp_path: Path) -> None:
    from hf_rmt.huggingface.compat import is_pretrained, source_of

    model = tiny_model("bert")
    assert source_of(model) == ""
    model.save_pretrained(tmp_path)
    assert source_of(type(model).from_pretrained(tmp_path)) == str(tmp_path)
    assert is_pretrained(model)
    assert not is_pretrained(nn.Linear(2, 2))


def test_a_hook_of_accelerate_runs_around_the_new_module() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    from hf_rmt.huggingface.compat import move_accelerate_hook

    class Doubling(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return 2 * output

    old, new = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.ones(1, 3)
    plain = [layer(x).detach() for layer in (old, new)]
    add_hook_to_module(old, Doubling())
    move_accelerate_hook(old, new)
    torch.testing.assert_close(old(x), plain[0])
    torch.testing.assert_close(new(x), 2 * plain[1])


def test_tensors_that_are_marked_are_not_initialised() -> None:
    from hf_rmt.huggingface.compat import mark_loaded

    model = tiny_model("bert")
    linear = nn.Linear(48, 48)
    before = linear.weight.detach().clone()
    mark_loaded(linear)
    model.encoder.layer[0].attention.self.query = linear
    model.init_weights()
    assert torch.equal(linear.weight, before)


def test_a_callback_finds_the_trainer_by_the_state_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer, TrainerCallback, TrainerState

    from hf_rmt.huggingface.compat import trainer_holding
    from tests.huggingface.training.training import arguments, classifier, sentences

    found = []

    class Asking(TrainerCallback):
        def on_init_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
            found.append(trainer_holding(state))

        on_train_begin = on_step_end = on_train_end = on_init_end

    def made() -> Trainer:
        settings = arguments(tmp_path, max_steps=1)
        return Trainer(classifier(), settings, train_dataset=sentences(8), callbacks=[Asking()])

    first, second = made(), made()
    for trainer in (first, second, first):
        trainer.train()
    assert [id(trainer) for trainer in found] == list(
        map(id, [first, second, *3 * [first], *3 * [second], *3 * [first]])
    )
    alone = TrainerState()
    assert trainer_holding(alone) is None
    monkeypatch.setattr(gc, "get_objects", lambda: pytest.fail("searched again"))
    assert trainer_holding(alone) is None


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_peft_leaves_empty_layers_behind_and_they_are_taken_away() -> None:
    peft = pytest.importorskip("peft")
    model: Any = tiny_model("bert")
    names = [name for name, _ in model.named_modules()]
    config = {"target_modules": ["query"], "modules_to_save": ["value"]}
    for adapter in ("first", "second"):
        model.add_adapter(peft.LoraConfig(r=2, **config), adapter)
    wrapped = adapter_layers(model)
    assert [name.rpartition(".")[2] for name in wrapped] == ["query", "value"]
    model.delete_adapter("first")
    shed_adapters(model)
    assert saves_adapter_only(model)
    assert adapter_layers(model) == wrapped
    model.delete_adapter("second")
    assert not saves_adapter_only(model)
    assert adapter_layers(model) == wrapped
    shed_adapters(model)
    assert [name for name, _ in model.named_modules()] == names
