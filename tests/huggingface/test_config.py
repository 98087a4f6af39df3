from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from hf_rmt import RMTConfig
from hf_rmt.huggingface.saving.record import FORMAT_VERSION


def test_json_and_back() -> None:
    config = RMTConfig(noise="drop", noise_removal=0.5, target_modules=["query"], max_rank=3)
    assert RMTConfig.from_dict(json.loads(config.to_json_string())) == config


def test_dataclasses_know_every_option() -> None:
    config = RMTConfig(method="svd", rank=3, noise="drop", layout="int8")
    assert dataclasses.replace(config) == config
    assert dataclasses.replace(config, rank=4) == config.replace(rank=4)
    assert dataclasses.asdict(config) == vars(config)
    with pytest.raises(TypeError, match="rnk"):
        dataclasses.replace(config, rnk=4)


def test_unused_keyword_arguments_come_back() -> None:
    config, unused = RMTConfig.from_dict({"noise": "int4"}, return_unused_kwargs=True, colour=1)
    assert config == RMTConfig(noise="int4")
    assert unused == {"colour": 1}


def test_keyword_arguments_override_and_are_checked() -> None:
    assert RMTConfig.from_dict({"noise": "int4"}, max_rank=2).max_rank == 2
    with pytest.raises(ValueError, match="max_rank"):
        RMTConfig.from_dict({}, max_rank=-2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nois": "int8"}, r"unknown fields \['nois'\].*misspelled"),
        ({"quant_method": "gptq"}, "must be 'rmt'"),
        ({"format_version": FORMAT_VERSION + 1}, "upgrade hf_rmt"),
        ({"noise": "int3"}, "int3"),
    ],
)
def test_what_cannot_be_read_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RMTConfig.from_dict(fields)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"target_modules": "(("}, ValueError, r"regular expression .* got '\(\(': .*; correct it"),
        ({"target_modules": ""}, ValueError, "target_modules='' selects nothing"),
        ({"size": 0.05}, ValueError, r"size=0\.05 is no option .* pass the arguments size"),
        ({"calibrated": True}, ValueError, "calibrated=True is no option"),
        ({"layers": []}, TypeError, r"layers must be a dict .* got \[\]"),
        ({"format_version": "x"}, TypeError, "format_version must be an integer .* got 'x'"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    fields: dict[str, Any], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        RMTConfig(**fields)


def test_help_tells_every_setting_once() -> None:
    lines = (RMTConfig.__doc__ or "").splitlines()
    for entry in dataclasses.fields(RMTConfig):
        assert sum(line.startswith(f"    {entry.name}: ") for line in lines) == 1
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        "Args:",
        "Raises:",
        "Examples:",
    ]
