from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertForSequenceClassification, BertModel

import hf_rmt
from hf_rmt import RMTConfig, SpikedLinear
from hf_rmt.huggingface.api import model_class
from hf_rmt.settings import NOISE_KINDS
from tests.huggingface.models import FAMILIES, outputs, tiny_model
from tests.reloading import save_with_evidence

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the dense tiny models."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(folders[family])
    return folders


def load(folder: Path, **kwargs: object) -> nn.Module:
    return model_class(folder).from_pretrained(folder, **kwargs)


def spiked_layers(model: nn.Module) -> dict[str, SpikedLinear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, SpikedLinear)}


def run(script: str, cases: object) -> dict[str, float]:
    """What a new process prints as JSON."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


RELOAD = """
import json, sys, torch, hf_rmt
from tests.huggingface.models import outputs
from tests.reloading import differences
from hf_rmt.huggingface.api import model_class
found = {}
for folder, family, dtype in json.load(sys.stdin):
    model = model_class(folder).from_pretrained(folder, dtype=getattr(torch, dtype))
    found[folder] = differences(model, outputs(model, family), folder)
print(json.dumps(found))
"""


def save_with_outputs(model: Any, family: str, folder: Path) -> str:
    """Save a model with what it gives, for a process that reloads it."""
    return save_with_evidence(model, outputs(model, family), folder)


def test_what_is_saved_reloads_in_a_new_process_without_a_difference(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    cases = []
    for family in FAMILIES:
        for noise in NOISE_KINDS:
            for dtype in DTYPES:
                folder = tmp_path / f"{family}-{noise}-{dtype}"
                config = RMTConfig(noise=noise)
                model = load(saved[family], quantization_config=config, dtype=DTYPES[dtype])
                assert spiked_layers(model)
                cases.append((save_with_outputs(model, family, folder), family, dtype))
    assert run(RELOAD, cases) == {folder: [] for folder, _, _ in cases}


REMOTE = """
import json, sys
sys.modules["hf_rmt"] = None  # as where it is not installed
import torch, transformers
from tests.huggingface.models import outputs
from tests.reloading import differences
found = {}
for folder, family in json.load(sys.stdin):
    config = json.load(open(folder + "/config.json"))
    model = getattr(transformers, config["architectures"][0])
    if family == "t5":  # a class of its own, the others by an Auto class
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    else:
        model = transformers.AutoModel
    loaded = model.from_pretrained(folder, trust_remote_code=True)
    found[folder] = differences(loaded, outputs(loaded, family), folder)
print(json.dumps(found))
"""


def test_remote_code_reloads_without_the_package(saved: dict[str, Path], tmp_path: Path) -> None:
    cases = []
    for family in FAMILIES:
        model = load(saved[family], quantization_config=RMTConfig(noise="int4"))
        cases.append((save_with_outputs(model, family, tmp_path / family), family))
    assert run(REMOTE, cases) == {folder: [] for folder, _ in cases}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_and_mlp_linear_is_compressed_and_nothing_else(
    saved: dict[str, Path], family: str
) -> None:
    model = load(saved[family], quantization_config=RMTConfig())
    dense = {name for name, part in model.named_modules() if type(part) is nn.Linear}
    assert dense <= {"lm_head", "pooler.dense"}
    kinds = {name.rpartition(".")[2] for name in spiked_layers(model)}
    assert (
        kinds
        == {
            "bert": {"query", "key", "value", "dense"},
            "t5": {"q", "k", "v", "o", "wi", "wo"},
            "vit": {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"},
        }[family]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_default_keeps_the_outputs_and_makes_the_model_smaller(
    saved: dict[str, Path], family: str, tmp_path: Path
) -> None:
    reference = outputs(load(saved[family]), family)
    model = load(saved[family], quantization_config=RMTConfig())
    error = (outputs(model, family) - reference).norm() / reference.norm()
    assert 0 < error < 0.02
    assert model.compression_report.plan.size_ratio < 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_fly_and_in_place_give_the_same_model(saved: dict[str, Path], family: str) -> None:
    streamed = load(saved[family], quantization_config=RMTConfig(noise="int4"))
    in_place = load(saved[family])
    report = hf_rmt.compress(in_place, RMTConfig(noise="int4"))
    assert torch.equal(outputs(streamed, family), outputs(in_place, family))
    recorded = in_place.config.quantization_config.layers
    assert recorded.keys() == streamed.config.quantization_config.layers.keys()
    assert recorded == report.plan.to_dict()


def test_the_signal_is_trained_and_the_noise_is_not(saved: dict[str, Path]) -> None:
    model = load(saved["bert"], quantization_config=RMTConfig())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "encoder.layer.0.attention.self.query.weight" in trainable
    outputs_of = model(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state.sum()
    outputs_of.backward()
    for layer in spiked_layers(model).values():
        assert layer.weight.grad is not None
        assert all(not buffer.is_floating_point() for buffer in layer.noise.buffers())


def test_trained_factors_are_saved_in_full(saved: dict[str, Path], tmp_path: Path) -> None:
    model = load(saved["bert"], quantization_config=RMTConfig())
    with torch.no_grad():
        for layer in spiked_layers(model).values():
            layer.weight += 1e-5 * torch.randn_like(layer.weight)
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(outputs(reloaded, "bert"), outputs(model, "bert"))


def test_dequantize_gives_plain_linears_with_the_same_outputs(saved: dict[str, Path]) -> None:
    model = load(saved["bert"], quantization_config=RMTConfig())
    before = outputs(model, "bert")
    dense = model.dequantize()
    assert not spiked_layers(dense)
    torch.testing.assert_close(outputs(dense, "bert"), before, rtol=1e-4, atol=1e-5)


def test_sharded_checkpoints_reload(saved: dict[str, Path], tmp_path: Path) -> None:
    model = load(saved["bert"], quantization_config=RMTConfig())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(outputs(reloaded, "bert"), outputs(model, "bert"))


def test_a_head_is_added_to_and_dropped_from_a_compressed_base(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    base = load(saved["bert"], quantization_config=RMTConfig())
    base.save_pretrained(tmp_path / "base")
    headed = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(outputs(headed.bert, "bert"), outputs(base, "bert"))
    assert all(name.startswith("bert.") for name in headed.config.quantization_config.layers)
    headed.save_pretrained(tmp_path / "headed")
    bare = BertModel.from_pretrained(tmp_path / "headed")
    assert torch.equal(outputs(bare, "bert"), outputs(base, "bert"))


def test_degenerate_layers_stay_dense_with_a_reason(tmp_path: Path) -> None:
    model = tiny_model("bert")
    layer = model.encoder.layer[0]
    layer.attention.self.query.weight.data.zero_()
    layer.attention.self.key.weight.data[:] = torch.outer(torch.ones(48), torch.ones(48))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, quantization_config=RMTConfig())
    layers = loaded.config.quantization_config.layers
    query = layers["encoder.layer.0.attention.self.query"]
    key = layers["encoder.layer.0.attention.self.key"]
    assert (query["outcome"], query["reason"]) == ("kept", "the matrix is zero")
    assert key["outcome"] == "kept"
    assert "rank 1" in key["reason"]
    assert torch.equal(loaded.encoder.layer[0].attention.self.key.weight, torch.ones(48, 48))
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(outputs(again, "bert"), outputs(loaded, "bert"))


def test_dropping_noise_says_once_what_it_costs(
    saved: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = load(saved["bert"], quantization_config=RMTConfig(noise="drop"))
    (record,) = [entry for entry in caplog.records if entry.name.startswith("hf_rmt")]
    lost = model.compression_report.plan.dropped_energy
    assert f"{100 * lost:.0f} % of the energy" in record.getMessage()
    assert "fine-tune a pretrained model" in record.getMessage()


def test_the_users_config_is_not_changed_and_serves_twice(saved: dict[str, Path]) -> None:
    config = RMTConfig()
    load(saved["bert"], quantization_config=config)
    load(saved["vit"], quantization_config=config)
    assert config == RMTConfig()
