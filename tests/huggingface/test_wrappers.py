"""A transformers model anywhere inside another module is compressed, recorded and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_rmt import RMTConfig, SpikedLinear, compress, extract_adapter, filter_update
from tests.huggingface.training.training import classifier

LOW = RMTConfig(method="svd", rank=8, noise="drop")


class Holder(nn.Module):
    """A module of a user's that holds a model under a name of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"text": model})


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "Sequential": nn.Sequential,
    "user": Holder,
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_saved_and_loaded(wrapper: str, tmp_path: Path) -> None:
    model = classifier()
    report = compress(WRAPPERS[wrapper](model), LOW)
    assert "classifier" not in str([layer.name for layer in report.plan])
    assert len(model.compression_report.plan) == len(report.plan)
    assert all(model.get_submodule(layer.name) for layer in model.compression_report.plan)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())
    assert any(isinstance(part, SpikedLinear) for part in again.modules())


def test_two_models_in_one_module_have_a_record_each(tmp_path: Path) -> None:
    pair = nn.ModuleDict({"a": classifier(), "b": classifier()})
    report = compress(pair, LOW)
    for name, model in pair.items():
        names = [layer.name for layer in model.compression_report.plan]
        assert [f"{name}.{part}" for part in names] == [
            layer.name for layer in report.plan if layer.name.startswith(f"{name}.")
        ]
        model.save_pretrained(tmp_path / name)
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name)


def test_a_second_call_on_the_wrapper_adds_to_the_record() -> None:
    holder = Holder(classifier())
    first = ["query", "key"]
    compress(holder, LOW.replace(target_modules=first))
    report = compress(holder, LOW.replace(target_modules=["value"]))
    assert {layer.name.rpartition(".")[2] for layer in report.plan} == {"value"}
    report = holder.compression_report
    assert {layer.name.rpartition(".")[2] for layer in report.plan} == {*first, "value"}
    inner: Any = holder.inner["text"]
    assert len(inner.hf_quantizer.quantization_config.layers) == len(report.plan)


@pytest.mark.parametrize("wrapper", ["DataParallel", "compiled"])
def test_an_update_is_filtered_and_extracted_inside_wrappers(wrapper: str) -> None:
    wrap, base, tuned = WRAPPERS[wrapper], classifier(), classifier()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    other = copy.deepcopy(tuned)
    report = filter_update(wrap(base), wrap(tuned))
    assert report.plan == filter_update(base, other).plan
    states = zip(tuned.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in states)
    assert extract_adapter(wrap(base), wrap(other), rank=2).ranks
