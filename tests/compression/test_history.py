"""The record of several compressions of one model, and of one that was cut off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_rmt.compression.history import report_below
from hf_rmt.compression.methods.truncation import TruncatedSVD
from hf_rmt.compression.model import compress
from hf_rmt.nn.counterparts import compressed_layers, densify
from hf_rmt.settings import CompressionSettings


def settings(*names: str) -> CompressionSettings:
    return CompressionSettings(method="svd", rank=4, noise="drop", target_modules=list(names))


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(48, 40), nn.Linear(40, 40), nn.Linear(40, 48))
    return nn.ModuleDict({"body": layers})


def names(report: Any) -> list[str]:
    return [layer.name for layer in report.plan]


def test_the_report_of_a_model_holds_all_calls_in_its_order() -> None:
    made = model()
    compress(made, settings("body.2"))
    second = compress(made, settings("body.0"))
    assert names(second) == ["body.0"]
    assert names(made.compression_report) == ["body.0", "body.2"]
    assert len(made.compression_report.spectra) == 2


def test_the_sizes_and_times_of_several_calls_are_those_of_one() -> None:
    one, several = model(), model()
    compress(one, settings("body.0", "body.1"))
    compress(several, settings("body.0"))
    compress(several, settings("body.1"))
    assert several.compression_report.sizes == one.compression_report.sizes
    assert [layer.latency for layer in several.compression_report.timed().plan] != [None, None]
    assert "energy dropped" in str(several.compression_report)


def test_layers_that_were_made_dense_again_are_forgotten() -> None:
    made = model()
    compress(made, settings("body.0", "body.1"))
    densify(made)
    compress(made, settings("body.2"))
    assert names(made.compression_report) == ["body.2"]


def test_a_part_of_a_report_has_the_names_of_the_part() -> None:
    made = model()
    report = compress(made, settings("body.0", "body.2"))
    part = report_below(report, "body", made["body"])
    assert names(part) == ["0", "2"]
    assert part.sizes == report.sizes
    assert report_below(report, "", made) is report
    assert names(report_below(report, "bod", made["body"])) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_done_before_an_error_is_on_record(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, decide = model(), TruncatedSVD.decide

    def stop(self: Any, name: str, *others: Any) -> Any:
        if name == "body.2":
            raise error("stop")
        return decide(self, name, *others)

    monkeypatch.setattr(TruncatedSVD, "decide", stop)
    with pytest.raises(error) as caught:
        compress(made, settings("body.0", "body.1", "body.2"))
    assert "2 of 3 layers were changed" in " ".join(caught.value.__notes__)
    assert names(made.compression_report) == list(compressed_layers(made)) == ["body.0", "body.1"]
