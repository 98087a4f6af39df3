"""ResNets, whose weights are convolutions, and GPT-2, whose weights lie transposed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.nn import SpikedConv2d
from hf_rmt.settings import NOISE_KINDS
from tests.huggingface.models import (
    OTHER_WEIGHTS,
    SHORTCUT,
    STRIDED,
    outputs,
    relative,
    tiny_model,
)
from tests.huggingface.test_quantizer import (
    DTYPES,
    RELOAD,
    REMOTE,
    load,
    run,
    save_with_outputs,
    spiked_layers,
)
from tests.processes import succeed

STEM = "embedder.embedder.convolution"
PATCHES = "embeddings.patch_embeddings.projection"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the spectra takes longer than all else about saving."""
    monkeypatch.setattr("hf_rmt.huggingface.saving.companions.picture_of", lambda model: b"")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the dense tiny models."""
    folders = {}
    for family in (*OTHER_WEIGHTS, "vit"):
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(folders[family])
    return folders


def test_default_compresses_the_stages_of_a_resnet(saved: dict[str, Path]) -> None:
    model = load(saved["resnet"], quantization_config=RMTConfig())
    layers = spiked_layers(model)
    dense = {name for name, part in model.named_modules() if type(part) is nn.Conv2d}
    assert dense == {STEM}
    assert len(layers) == 5
    assert all(type(layer) is SpikedConv2d for layer in layers.values())
    plans = {plan.name: plan for plan in model.compression_report.timed().plan}
    assert plans[SHORTCUT].shape == (48, 32)
    assert plans[STRIDED].shape == (48, 32 * 9)
    assert any(plan.latency for plan in plans.values())


def test_transposed_weights_are_compressed_the_right_way_round(saved: dict[str, Path]) -> None:
    model = load(saved["gpt2"], quantization_config=RMTConfig(noise="keep"))
    dense = load(saved["gpt2"])
    layers = spiked_layers(model)
    assert {name.rpartition(".")[2] for name in layers} == {"c_attn", "c_proj", "c_fc"}
    for name, layer in layers.items():
        weight = dense.get_submodule(name).weight
        assert (layer.in_features, layer.out_features) == tuple(weight.shape)
        torch.testing.assert_close(layer.dense(), weight.T, rtol=0, atol=1e-6)


def test_a_patch_embedding_is_compressed_when_asked_for(saved: dict[str, Path]) -> None:
    reference = outputs(load(saved["vit"]), "vit")
    assert PATCHES not in spiked_layers(load(saved["vit"], quantization_config=RMTConfig()))
    config = RMTConfig(target_modules=["projection"], noise="keep", min_size=1)
    model = load(saved["vit"], quantization_config=config)
    assert list(spiked_layers(model)) == [PATCHES]
    torch.testing.assert_close(outputs(model, "vit"), reference, rtol=1e-5, atol=1e-5)


def test_what_is_saved_reloads_in_a_new_process_without_a_difference(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    cases = []
    kinds = zip(NOISE_KINDS, ("float32", "bfloat16", "float32", "bfloat16", "float32"), strict=True)
    for (noise, dtype), family in itertools.product(kinds, OTHER_WEIGHTS):
        folder = tmp_path / f"{family}-{noise}"
        config = RMTConfig(noise=noise)
        model = load(saved[family], quantization_config=config, dtype=DTYPES[dtype])
        assert spiked_layers(model)
        cases.append((save_with_outputs(model, family, folder), family, dtype))
    assert run(RELOAD, cases) == {folder: [] for folder, _, _ in cases}


PLAIN = """
import json, sys
sys.modules["hf_rmt"] = None  # as where it is not installed
from transformers import AutoModel
errors = {}
for folder in json.load(sys.stdin):
    try:
        AutoModel.from_pretrained(folder)
        errors[folder] = "none"
    except Exception as error:
        errors[folder] = str(error)
print(json.dumps(errors))
"""


def test_remote_code_reloads_without_the_package_and_plain_code_refuses(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    cases = []
    for family in OTHER_WEIGHTS:
        model = load(saved[family], quantization_config=RMTConfig(noise="ternary"))
        cases.append((save_with_outputs(model, family, tmp_path / family), family))
    assert run(REMOTE, cases) == {folder: [] for folder, _ in cases}
    errors = run(PLAIN, [folder for folder, _ in cases])
    assert all("hf_rmt" in error for error in errors.values()), errors


@pytest.mark.parametrize("family", OTHER_WEIGHTS)
def test_on_the_fly_and_in_place_give_the_same_model(saved: dict[str, Path], family: str) -> None:
    reference = outputs(load(saved[family]), family)
    streamed = load(saved[family], quantization_config=RMTConfig())
    in_place = load(saved[family])
    hf_rmt.compress(in_place, RMTConfig())
    assert torch.equal(outputs(streamed, family), outputs(in_place, family))
    assert 0 < relative(outputs(streamed, family), reference) < 0.02
    assert streamed.compression_report.plan.size_ratio < 0.5


@pytest.mark.parametrize("family", OTHER_WEIGHTS)
def test_a_dense_export_has_the_layers_of_the_original(
    saved: dict[str, Path], family: str, tmp_path: Path
) -> None:
    model = load(saved[family], quantization_config=RMTConfig(noise="int4"))
    exported = hf_rmt.export_dense(model)
    kinds = {type(exported.get_submodule(name)) for name in spiked_layers(model)}
    assert kinds == {"resnet": {nn.Conv2d}, "gpt2": {Conv1D}}[family]
    exported.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(plain, family), outputs(model, family), rtol=1e-4, atol=1e-4)
    modules = dict(plain.named_modules()), dict(tiny_model(family).named_modules())
    assert [str(part) for part in modules[0].values()] == [
        str(part) for part in modules[1].values()
    ]


@pytest.mark.parametrize("family", OTHER_WEIGHTS)
def test_spectra_before_and_after(saved: dict[str, Path], family: str) -> None:
    before = hf_rmt.analyze(load(saved[family]))
    after = hf_rmt.analyze(load(saved[family], quantization_config=RMTConfig(noise="keep")))
    for dense, spiked in zip(before, after, strict=True):
        assert (dense.name, dense.shape) == (spiked.name, spiked.shape)
        assert dense.fit.n_spikes == spiked.fit.n_spikes
        top = dense.fit.eigenvalues[0]
        assert spiked.fit.eigenvalues[0] == pytest.approx(top, rel=1e-4)


WORKER = """
import sys, torch
import hf_rmt
from torch import distributed
from tests.huggingface.models import tiny_model
distributed.init_process_group("gloo")
states = {}
for family in ("resnet", "gpt2"):
    for noise in ("int8", "drop"):
        model = tiny_model(family)
        hf_rmt.compress(model, hf_rmt.RMTConfig(noise=noise))
        states |= {f"{family}.{noise}.{key}": value for key, value in model.state_dict().items()}
torch.save(states, f"{sys.argv[1]}/{distributed.get_rank()}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_share_the_work_and_end_alike(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    succeed(worker, tmp_path, processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in second)
    for family in OTHER_WEIGHTS:
        alone = tiny_model(family)
        hf_rmt.compress(alone, RMTConfig())
        for key, value in alone.state_dict().items():
            assert torch.equal(first[f"{family}.int8.{key}"], value)


def test_a_layer_of_another_geometry_is_not_loaded(saved: dict[str, Path], tmp_path: Path) -> None:
    load(saved["resnet"], quantization_config=RMTConfig()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a matrix of shape \(32, 288\), this model has"):
        AutoModel.from_pretrained(tmp_path, layer_type="bottleneck")
