"""`RMTConfig(layout=...)`: how a model lies in memory, which no file knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_rmt import RMTConfig, compress, set_layout
from hf_rmt.nn.counterparts import compressed_layers
from tests.huggingface.models import FAMILIES, outputs, tiny_model


@pytest.mark.parametrize("layout", ["packed", "int8", "dense"])
@pytest.mark.parametrize("noise", ["int8", "ternary", "keep"])
def test_offloaded_noise_is_loaded_when_it_is_used(noise: str, layout: str) -> None:
    from accelerate import cpu_offload

    model = tiny_model("bert")
    compress(model, RMTConfig(noise=noise))
    set_layout(model, layout)
    with torch.no_grad():
        expected = outputs(model, "bert")
        cpu_offload(model, "cpu", offload_buffers=True)
        # Codes that lie elsewhere are unpacked for each product, and those in memory need not be.
        torch.testing.assert_close(outputs(model, "bert"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "int8", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layout_is_set_while_loading_and_never_saved(
    family: str, layout: str, tmp_path: Path
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "dense")
    kind = type(model)
    config = RMTConfig(layout=layout)
    loaded = kind.from_pretrained(tmp_path / "dense", quantization_config=config)
    plain = kind.from_pretrained(tmp_path / "dense", quantization_config=RMTConfig())
    assert {layer.layout for layer in compressed_layers(loaded).values()} == {layout}
    expected = outputs(plain, family)
    distance = float((outputs(loaded, family) - expected).norm() / expected.norm())
    assert distance < (0.05 if layout == "int8" else 1e-5)
    loaded.save_pretrained(tmp_path / "laid_out")
    plain.save_pretrained(tmp_path / "packed")
    record = json.loads((tmp_path / "laid_out" / "config.json").read_text())["quantization_config"]
    assert not {"layout", "activations"} & set(record)
    again = kind.from_pretrained(tmp_path / "laid_out")
    state = plain.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("layout", ["packed", "int8", "dense", "fastest"])
def test_a_compressed_model_is_loaded_into_a_layout(layout: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    compress(model, RMTConfig(noise="int4"))
    model.save_pretrained(tmp_path)
    config = RMTConfig(noise="int8", layout=layout, activations="int16")
    again = AutoModel.from_pretrained(tmp_path, quantization_config=config)
    layers = compressed_layers(again).values()
    if layout != "fastest":
        assert {layer.layout for layer in layers} == {layout}
    assert {layer.noise.kind for layer in layers} == {"int4"}  # as it was saved
    states = (again.state_dict(), model.state_dict())
    assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())
    again.save_pretrained(tmp_path / "again")
    assert AutoModel.from_pretrained(tmp_path / "again").hf_quantizer is not None


def test_a_layout_survives_copies_of_the_config_and_goes_with_compress() -> None:
    config = RMTConfig(layout="dense", activations="int16")
    assert (config.replace(noise="int4").layout, config.replace().activations) == ("dense", "int16")
    model = tiny_model("bert")
    compress(model, config)
    assert {layer.layout for layer in compressed_layers(model).values()} == {"dense"}
    count = len(compressed_layers(model))
    assert set_layout(model, "packed").startswith(f"layouts: {count} packed")
    with pytest.raises(ValueError, match="layout must be one of"):
        RMTConfig(layout="flat")


def test_a_laid_out_model_becomes_dense_again() -> None:
    model = tiny_model("bert")
    compress(model, RMTConfig(noise="int4", layout="dense"))
    before = outputs(model, "bert")
    dense = model.dequantize()
    assert not compressed_layers(dense)
    assert not any(hasattr(part, "layout_object") for part in dense.modules())
    torch.testing.assert_close(outputs(dense, "bert"), before, rtol=0, atol=1e-5)


def test_an_auto_class_takes_the_layout_too(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, quantization_config=RMTConfig(layout="smallest"))
    assert {layer.layout for layer in compressed_layers(model).values()} == {"packed"}
