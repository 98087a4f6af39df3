"""What an error half-way, or a bad weight, leaves of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_rmt import RMTConfig, compress
from hf_rmt.compression.methods.laws import PopulationDoubleBulk
from hf_rmt.nn.counterparts import compressed_layers
from tests.huggingface.training.training import classifier

LATER = "bert.encoder.layer.0.attention.output.dense"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_layers_that_were_done_before_an_error_are_on_record(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decide, model = PopulationDoubleBulk.decide, classifier()

    def stop(self: Any, name: str, weight: Any, settings: Any) -> Any:
        if name == LATER:
            raise error("stop")
        return decide(self, name, weight, settings)

    monkeypatch.setattr(PopulationDoubleBulk, "decide", stop)
    with pytest.raises(error) as caught:
        compress(model, RMTConfig(noise="int4"))
    monkeypatch.undo()
    done = set(compressed_layers(model))
    assert done
    assert LATER not in done
    assert f"{len(done)} of 6 layers were changed" in " ".join(caught.value.__notes__)
    assert {layer.name for layer in model.compression_report.plan} == done
    compress(model, RMTConfig(noise="int4", target_modules=[LATER]))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())
    assert LATER in compressed_layers(again)


def odd_weights() -> dict[str, tuple[Any, str]]:
    plain = torch.randn(64, 64)
    return {
        "complex": (plain.to(torch.complex64), "complex64"),
        "float8": (plain.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        "integer": (plain.to(torch.int8), "int8"),
        "bool": (plain > 0, "torch.bool"),
        "sparse": (plain.to_sparse(), "sparse_coo"),
        "meta": (plain.to("meta"), "meta device"),
    }


@pytest.mark.parametrize("kind", odd_weights())
def test_a_weight_that_has_no_spectrum_is_refused_before_any_layer_changes(kind: str) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    weight, words = odd_weights()[kind]
    model[1].weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match=words):
        compress(model, RMTConfig(target_modules="all-linear"))
    assert not compressed_layers(model)
