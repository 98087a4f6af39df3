from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

import hf_rmt
from hf_rmt import RMTConfig
from tests.huggingface.models import outputs, tiny_model


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    tiny_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def compressed(dense: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "compressed"
    AutoModel.from_pretrained(dense, quantization_config=RMTConfig()).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    config["quantization_config"].pop("digest")  # the change is meant
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_with_nan_or_inf_stays_dense_with_a_reason(value: float) -> None:
    model = tiny_model("bert")
    query = model.encoder.layer[0].attention.self.query
    query.weight.data[3, 4] = value
    before = query.weight.detach().clone()
    report = hf_rmt.compress(model)
    (plan,) = [layer for layer in report.plan if not layer.compressed]
    assert plan.name.endswith("query")
    assert "nan or inf" in plan.reason
    torch.testing.assert_close(
        model.encoder.layer[0].attention.self.query.weight, before, equal_nan=True
    )


def test_small_layers_stay_dense_with_a_reason() -> None:
    report = hf_rmt.compress(tiny_model("bert"), RMTConfig(min_size=49), dry_run=True)
    assert all("min_size=49" in layer.reason for layer in report.plan)


def test_a_compressed_model_is_not_compressed_again(compressed: Path) -> None:
    model = AutoModel.from_pretrained(compressed)
    with pytest.raises(ValueError, match="quantized already with 'rmt'"):
        hf_rmt.compress(model)


def test_passing_a_config_to_a_compressed_model_keeps_what_was_saved(compressed: Path) -> None:
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = AutoModel.from_pretrained(
            compressed, quantization_config=RMTConfig(noise="ternary")
        )
    assert model.config.quantization_config.noise == "int8"


def test_a_model_of_another_method_is_refused(dense: Path) -> None:
    path = dense / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "bitnet"}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="BitNetQuantConfig but you are passing a RMTConfig"):
        AutoModel.from_pretrained(dense, quantization_config=RMTConfig())


def test_a_config_of_a_newer_version_is_refused(compressed: Path) -> None:
    edit_config(compressed, format_version=99)
    with pytest.raises(ValueError, match=r"format_version 99.*upgrade hf_rmt"):
        AutoModel.from_pretrained(compressed)


def test_an_unknown_field_is_refused_by_name(compressed: Path) -> None:
    edit_config(compressed, wavelets=True)
    with pytest.raises(ValueError, match=r"unknown fields \['wavelets'\].*newer hf_rmt"):
        AutoModel.from_pretrained(compressed)


def test_a_config_without_layers_is_refused(compressed: Path) -> None:
    edit_config(compressed, layers=None)
    with pytest.raises(ValueError, match="records no layers"):
        AutoModel.from_pretrained(compressed)


def test_a_config_of_another_model_is_refused(compressed: Path) -> None:
    path = compressed / "config.json"
    layers = json.loads(path.read_text())["quantization_config"]["layers"]
    edit_config(compressed, layers={f"elsewhere.{name}": entry for name, entry in layers.items()})
    with pytest.raises(ValueError, match=r"none of the 6 recorded layers.*BertModel"):
        AutoModel.from_pretrained(compressed)


def test_a_truncated_file_is_an_error(compressed: Path) -> None:
    weights = compressed / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(
        ValueError, match=r"model\.safetensors do not come from the same save.*damaged"
    ):
        AutoModel.from_pretrained(compressed)


def test_missing_weights_are_an_error(compressed: Path) -> None:
    (compressed / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(compressed)


def test_no_network_is_an_error_that_names_the_model() -> None:
    with pytest.raises(OSError, match="nobody/nothing"):
        hf_rmt.analyze("nobody/nothing")


def test_saving_over_a_file_is_an_error_and_loses_nothing(compressed: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.write_text("precious")
    with pytest.raises(NotADirectoryError, match="taken"):
        AutoModel.from_pretrained(compressed).save_pretrained(target)
    assert target.read_text() == "precious"


def test_a_card_that_a_person_wrote_is_kept(compressed: Path, tmp_path: Path) -> None:
    target = tmp_path / "again"
    target.mkdir()
    (target / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    AutoModel.from_pretrained(compressed).save_pretrained(target)
    assert "My own words." in (target / "README.md").read_text()


def test_a_target_that_matches_nothing_leaves_the_model_alone(dense: Path) -> None:
    model = AutoModel.from_pretrained(dense)
    before = outputs(model, "bert")
    with pytest.raises(ValueError, match="matches no linear layer"):
        hf_rmt.compress(model, RMTConfig(target_modules=["wq"]))
    with pytest.raises(ValueError, match="matches no linear layer"):
        AutoModel.from_pretrained(dense, quantization_config=RMTConfig(target_modules=["wq"]))
    assert torch.equal(outputs(model, "bert"), before)


@pytest.mark.parametrize("device_map", [{"": "disk"}, {"embeddings": 0, "encoder": "cpu"}])
def test_offloading_on_the_fly_is_refused(dense: Path, device_map: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="offload the saved model"):
        AutoModel.from_pretrained(dense, quantization_config=RMTConfig(), device_map=device_map)


def test_a_saved_model_can_be_offloaded(compressed: Path, tmp_path: Path) -> None:
    expected = outputs(AutoModel.from_pretrained(compressed), "bert")
    device_map = {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
    model = AutoModel.from_pretrained(
        compressed, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert torch.equal(outputs(model, "bert"), expected)


NEED_MEMORY: dict[str, Callable[[Any], Any]] = {
    "dequantize": lambda model: model.dequantize(),
    "export_dense": hf_rmt.export_dense,
    "analyze": hf_rmt.analyze,
    "compress": hf_rmt.compress,
    **{
        f"set_layout {name}": partial(hf_rmt.set_layout, layout=name)
        for name in ("int8", "fused", "fastest", "smallest")
    },
}


@pytest.mark.parametrize("config", [RMTConfig(), RMTConfig(method="svd", rank=4, noise="drop")])
def test_what_reads_weights_refuses_an_offloaded_model_and_leaves_it_alone(
    config: RMTConfig, tmp_path: Path
) -> None:
    model = tiny_model("bert")
    hf_rmt.compress(model, config)
    model.save_pretrained(tmp_path / "saved")
    expected = outputs(model, "bert")
    device_map = {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
    model = AutoModel.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    for name, call in NEED_MEMORY.items():
        with pytest.raises(ValueError, match="load the model without offloading"):
            pytest.fail(f"{name} gave {call(model)}")
        assert torch.equal(outputs(model, "bert"), expected), name
    for layout in ("dense", "packed"):
        hf_rmt.set_layout(model, layout)
        torch.testing.assert_close(outputs(model, "bert"), expected)


def test_a_dry_run_changes_nothing() -> None:
    model = tiny_model("bert")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = hf_rmt.compress(model, RMTConfig(noise="drop"), dry_run=True)
    assert report.plan.compressed
    assert any(layer.latency and layer.latency > 0 for layer in report.timed().plan.compressed)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not hasattr(model, "hf_quantizer")


def test_compress_wants_a_module_and_a_config() -> None:
    with pytest.raises(TypeError, match="load it first"):
        hf_rmt.compress("some/model")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RMTConfig"):
        hf_rmt.compress(tiny_model("bert"), {"noise": "int8"})  # type: ignore[arg-type]


def test_exporting_a_dense_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="dense already"):
        hf_rmt.export_dense(nn.Sequential(nn.Linear(4, 4)))


def test_a_copied_folder_loads_like_the_original(compressed: Path, tmp_path: Path) -> None:
    shutil.copytree(compressed, tmp_path / "copy")
    first, second = (AutoModel.from_pretrained(f) for f in (compressed, tmp_path / "copy"))
    assert torch.equal(outputs(first, "bert"), outputs(second, "bert"))
