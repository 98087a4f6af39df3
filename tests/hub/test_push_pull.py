"""A compressed model over a hub: pushed by one process, pulled by others in each way there is."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load

PUSH = """
import torch
import hf_rmt
from transformers import BertConfig, BertModel

torch.manual_seed(0)
shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
model = BertModel(BertConfig(vocab_size=64, **shape)).eval()
with torch.no_grad():
    for name, weight in model.encoder.named_parameters():
        if weight.ndim == 2:  # initial weights are noise; two directions of signal beyond it
            weight += 0.03 * torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
hf_rmt.compress(model, hf_rmt.RMTConfig(noise="int8"))
model.push_to_hub("user/compressed")
model.save_pretrained("saved", push_to_hub=True, repo_id="user/saved", commit_message="Mine")
changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
changed["embeddings.LayerNorm.weight"] += 1
model.save_pretrained("own", push_to_hub=True, repo_id="user/own-state", state_dict=changed)
torch.save(model(torch.arange(64).expand(2, -1)).last_hidden_state, "pushed.pt")
hf_rmt.export_dense(model).push_to_hub("user/dense")
hf_rmt.export_dense("user/compressed").push_to_hub("user/dense-of-pulled")
"""

NO_PACKAGE = """
import sys
sys.modules["hf_rmt"] = None  # importing it raises, as where it is not installed
"""

PULL = """
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({source!r}{option}).eval()
output = model(torch.arange(64).expand(2, -1)).last_hidden_state
difference = (output - torch.load("pushed.pt")).abs().max().item()
assert difference <= {tolerance}, difference
print(sorted({{type(module).__name__ for module in model.modules()}}))
"""

COMPRESSED, DENSE, OWN = "user/compressed", "user/dense", "user/own-state"


def pull(source: str, *, option: str = "", tolerance: float = 0.0) -> str:
    return PULL.format(source=source, option=option, tolerance=tolerance)


@pytest.fixture(scope="module")
def pushed(loopback_hub):
    loopback_hub.run(PUSH)
    return loopback_hub


def test_saving_with_a_push_pushes_the_same_files(pushed):
    assert pushed.repos["user/saved"].keys() == pushed.repos[COMPRESSED].keys()
    weights = "model.safetensors"
    assert pushed.repos["user/saved"][weights] == pushed.repos[COMPRESSED][weights]


def test_a_push_has_the_tensors_that_were_given(pushed):
    name = "embeddings.LayerNorm.weight"
    given, own = (load(pushed.repos[repo]["model.safetensors"])[name] for repo in (OWN, COMPRESSED))
    assert torch.equal(given, own + 1)


def test_pushed_repository_says_what_it_is(pushed):
    files = pushed.repos[COMPRESSED]
    config = json.loads(files["config.json"])
    assert config["quantization_config"]["quant_method"] == "rmt"
    ranks = [layer["rank"] for layer in config["quantization_config"]["layers"].values()]
    assert len(ranks) == 12
    assert min(ranks) >= 2
    assert "hf_rmt" in files["README.md"].decode()


@pytest.mark.parametrize("repo", [DENSE, "user/dense-of-pulled"])
def test_dense_export_holds_no_trace_of_compression(pushed, repo):
    config = json.loads(pushed.repos[repo]["config.json"])
    assert not {"quantization_config", "auto_map", "attn_implementation"} & set(config)
    assert not [path for path in pushed.repos[repo] if path.endswith(".py")]


def test_pull_with_the_package_is_exact(pushed):
    assert "SpikedLinear" in pushed.run("import hf_rmt\n" + pull(COMPRESSED)).stdout


def test_pull_by_remote_code_without_the_package_is_exact(pushed):
    run = pushed.run(NO_PACKAGE + pull(COMPRESSED, option=", trust_remote_code=True"))
    assert "SpikedLinear" in run.stdout


def test_pull_of_the_dense_export_by_plain_transformers_is_close(pushed):
    run = pushed.run(NO_PACKAGE + pull(DENSE, tolerance=1e-5))
    assert "SpikedLinear" not in run.stdout


def test_pull_without_either_names_the_package(pushed):
    run = pushed.run(NO_PACKAGE + pull(COMPRESSED), check=False)
    assert run.returncode != 0
    error = run.stderr.strip().splitlines()[-1]
    assert "hf_rmt" in error
    assert "ModuleNotFoundError" not in error
