"""Models whose code and config class are a user's own, in the folder of the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_rmt import RMTConfig, compress, export_dense
from hf_rmt.huggingface.saving.record import OWN_CONFIG
from tests.processes import succeed

CODE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class OwnConfig(PreTrainedConfig):
    model_type = "own-kind"

    def __init__(self, width=48, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "own"

    def __init__(self, config):
        super().__init__(config)
        width = config.width
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in "ab"]
        )
        self.post_init()

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x
"""
LOAD = """
{first}
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, type(model.config).__name__)
torch.save(model(torch.ones(80, 48)), sys.argv[2])
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a dense model that names its code in auto_map."""
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "own_code.py").write_text(CODE)
    space: dict[str, Any] = {}
    sys.path.insert(0, str(folder))
    try:
        import own_code

        space = vars(own_code)
    finally:
        sys.path.remove(str(folder))
    torch.manual_seed(0)
    model = space["OwnModel"](space["OwnConfig"]())
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    sys.modules.pop("own_code")
    return folder


@pytest.mark.parametrize("first", ["import hf_rmt", ""])
def test_it_loads_again_with_the_package_and_without(own: Path, first: str, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(own, trust_remote_code=True, quantization_config=RMTConfig())
    model.save_pretrained(tmp_path / "small")
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert written["auto_map"][OWN_CONFIG].endswith("own_code.OwnConfig")
    script = tmp_path / "load.py"
    script.write_text(LOAD.format(first=first))
    out = tmp_path / "outputs.pt"
    said = succeed(script, tmp_path / "small", out).stdout
    assert said.split() == ["OwnModel", "OwnConfig"]
    assert torch.equal(torch.load(out), model(torch.ones(80, 48)))


def test_it_is_saved_again_and_made_dense_with_its_own_map(own: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(own, trust_remote_code=True, quantization_config=RMTConfig())
    for number in ("one", "two"):
        model.save_pretrained(tmp_path / number)
        model = AutoModel.from_pretrained(tmp_path / number, trust_remote_code=True)
    maps = [
        json.loads((tmp_path / number / "config.json").read_text())["auto_map"]
        for number in ("one", "two")
    ]
    assert maps[0] == maps[1]
    dense = export_dense(model)
    dense.save_pretrained(tmp_path / "plain")
    again = AutoModel.from_pretrained(tmp_path / "plain", trust_remote_code=True)
    torch.testing.assert_close(again(torch.ones(80, 48)), model(torch.ones(80, 48)))


def test_an_unknown_kind_without_code_says_what_to_register(own: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(own, trust_remote_code=True)
    type(model)._auto_class = type(model.config)._auto_class = None
    del model.config.auto_map
    compress(model)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"'own-kind' is no architecture of transformers"):
        AutoConfig.from_pretrained(tmp_path / "small", trust_remote_code=True)
