from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, ResNetForImageClassification, Trainer, set_seed
from transformers.pytorch_utils import Conv1D

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.compression import compress_weight
from hf_rmt.integrations.callback import RMTCallback
from hf_rmt.nn import SpikedConv2d, SpikedLinear
from hf_rmt.settings import NOISE_KINDS
from tests.integrations.models import OTHER_WEIGHTS, outputs, tiny_model
from tests.integrations.test_quantizer import DTYPES, RELOAD, REMOTE, load, run
from tests.integrations.training import arguments

REPOSITORY = Path(__file__).parents[2]
STEM = "embedder.embedder.convolution"
SHORTCUT = "encoder.stages.1.layers.0.shortcut.convolution"
STRIDED = "encoder.stages.1.layers.0.layer.0.convolution"
PATCHES = "embeddings.patch_embeddings.projection"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the spectra takes longer than all else about saving."""
    monkeypatch.setattr("hf_rmt.integrations.saving._draw", lambda model, path: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the dense tiny models."""
    folders = {}
    for family in (*OTHER_WEIGHTS, "vit"):
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(folders[family])
    return folders


def layers_of(model: nn.Module) -> dict[str, SpikedLinear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, SpikedLinear)}


def vgg() -> nn.Sequential:
    """Strong directions in the hidden layers, and a convolution in groups."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 40, 3, stride=2, padding="valid", bias=False),
        nn.BatchNorm2d(40),
        nn.Conv2d(40, 40, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(40, 40, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for layer in (model[2], model[4], model[8]):
            matrix = layer.weight.flatten(1)
            direction = torch.outer(torch.randn(len(matrix)), torch.randn(matrix.shape[1]))
            matrix += 0.5 * matrix.norm() * direction / direction.norm()
    return model.eval()


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def test_default_compresses_the_stages_of_a_resnet(saved: dict[str, Path]) -> None:
    model = load(saved["resnet"], quantization_config=RMTConfig())
    layers = layers_of(model)
    dense = {name for name, part in model.named_modules() if type(part) is nn.Conv2d}
    assert dense == {STEM}
    assert len(layers) == 5
    assert all(type(layer) is SpikedConv2d for layer in layers.values())
    plans = {plan.name: plan for plan in model.hf_quantizer.report.plan}
    assert plans[SHORTCUT].shape == (48, 32)
    assert plans[STRIDED].shape == (48, 32 * 9)
    assert all(plan.latency > 0 for plan in plans.values())


def test_transposed_weights_are_compressed_the_right_way_round(saved: dict[str, Path]) -> None:
    model = load(saved["gpt2"], quantization_config=RMTConfig(noise="keep"))
    dense = load(saved["gpt2"])
    layers = layers_of(model)
    assert {name.rpartition(".")[2] for name in layers} == {"c_attn", "c_proj", "c_fc"}
    for name, layer in layers.items():
        weight = dense.get_submodule(name).weight
        assert (layer.in_features, layer.out_features) == tuple(weight.shape)
        torch.testing.assert_close(layer.dense(), weight.T, rtol=0, atol=1e-6)


def test_a_patch_embedding_is_compressed_when_asked_for(saved: dict[str, Path]) -> None:
    reference = outputs(load(saved["vit"]), "vit")
    assert PATCHES not in layers_of(load(saved["vit"], quantization_config=RMTConfig()))
    config = RMTConfig(target_modules=["projection"], noise="keep", min_size=1)
    model = load(saved["vit"], quantization_config=config)
    assert list(layers_of(model)) == [PATCHES]
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
        assert layers_of(model)
        model.save_pretrained(folder)
        torch.save(outputs(model, family), folder / "expected.pt")
        cases.append((str(folder), family, dtype))
    assert run(RELOAD, cases) == {folder: 0.0 for folder, _, _ in cases}


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
        folder = tmp_path / family
        model = load(saved[family], quantization_config=RMTConfig(noise="ternary"))
        model.save_pretrained(folder)
        torch.save(outputs(model, family), folder / "expected.pt")
        cases.append((str(folder), family))
    assert run(REMOTE, cases) == {folder: 0.0 for folder, _ in cases}
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
    assert streamed.hf_quantizer.report.plan.size_ratio < 0.5


@pytest.mark.parametrize("family", OTHER_WEIGHTS)
def test_a_dense_export_has_the_layers_of_the_original(
    saved: dict[str, Path], family: str, tmp_path: Path
) -> None:
    model = load(saved[family], quantization_config=RMTConfig(noise="int4"))
    exported = hf_rmt.export_dense(model)
    kinds = {type(exported.get_submodule(name)) for name in layers_of(model)}
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


@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_a_network_of_plain_torch(noise: str) -> None:
    model, x = vgg(), pictures()
    reference, bias = model(x), model[4].bias
    planned = hf_rmt.compress(model, RMTConfig(noise=noise), dry_run=True)
    assert torch.equal(model(x), reference)
    report = hf_rmt.compress(model, RMTConfig(noise=noise))
    assert [plan.name for plan in report.plan.compressed] == ["2", "4", "8"]
    assert [plan.bits for plan in planned.plan] == [plan.bits for plan in report.plan]
    assert all(plan.latency > 0 for plan in planned.plan.compressed)
    assert model[2].bias is None
    assert model[4].bias is bias
    assert relative(model(x), reference) < {"keep": 1e-5, "int8": 0.02}.get(noise, 2.0)
    dense = hf_rmt.export_dense(model)
    assert (dense[4].padding, dense[4].padding_mode) == ("same", "reflect")
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_where_factors_would_be_larger_a_kernel_is_filtered_in_place(layout: Any) -> None:
    model = vgg().to(memory_format=layout)
    kernel = model[4].weight.detach().clone()
    config = RMTConfig(noise="drop", noise_removal=0.1, recover_spikes=False, target_modules=["4"])
    (plan,) = hf_rmt.compress(model, config).plan
    assert (plan.compressed, type(model[4])) == (False, nn.Conv2d)
    u, s, v = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    kept = s.clone()
    kept[len(s) - round(0.1 * (len(s) - plan.n_spikes)) :] = 0
    assert 0 < (kept == 0).sum() < len(s) / 2
    torch.testing.assert_close(model[4].weight.flatten(1), u * kept @ v, rtol=0, atol=1e-4)


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
        arguments(folder, num_train_epochs=1, **changes),
        train_dataset=examples,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def test_training_filters_convolutions_and_leaves_a_compact_model(tmp_path: Path) -> None:
    trainer = fine_tune(tmp_path, RMTCallback(schedule=1))
    layers = layers_of(trainer.model)
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
    expected = compress_weight(STRIDED, kernel.flatten(1), config).filtered
    found = trainer.model.get_submodule(f"resnet.{STRIDED}").weight
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-5)


def test_filtering_what_training_added_keeps_the_start(tmp_path: Path) -> None:
    callback = RMTCallback(RMTConfig(noise="drop", max_rank=1), of="update", schedule="end")
    trainer = fine_tune(tmp_path, callback, learning_rate=1e-2)
    start = classifier()
    for name in (f"resnet.{STRIDED}", f"resnet.{SHORTCUT}"):
        added = trainer.model.get_submodule(name).weight - start.get_submodule(name).weight
        values = torch.linalg.svdvals(added.detach().flatten(1).double())
        assert values[1] < 1e-4 * values[0] or values[0] == 0


WORKER = """
import sys, torch
import hf_rmt
from torch import distributed
from tests.integrations.models import tiny_model
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    result = subprocess.run(
        [sys.executable, *launch, f"--master_port={port}", str(worker), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
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
