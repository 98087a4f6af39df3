from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_rmt import extract_adapter
from hf_rmt.cli import main
from hf_rmt.integrations.excitation import excitations
from tests.hub.conftest import LoopbackHub, loopback_hub  # noqa: F401

WIDTH, VOCABULARY = 24, 40
FAMILIES = ("bert", "roberta", "t5", "vit", "llama")
STOCK_PEFT = """
import sys, torch, transformers, warnings
from peft import PeftModel
warnings.simplefilter("ignore")
for line in sys.argv[1:]:
    name, base, adapter, inputs, outputs = line.split("|")
    model = getattr(transformers, name).from_pretrained(base)
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(inputs)).logits, outputs)
assert not any(module.startswith("hf_rmt") for module in sys.modules)
"""


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 40}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 20}
    if family == "bert":
        return BertForSequenceClassification(BertConfig(**sizes, **text)).eval()
    if family == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**sizes, **text)).eval()
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **text, tie_word_embeddings=True)).eval()
    if family == "vit":
        return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).eval()
    size = {"d_model": WIDTH, "d_kv": 12, "d_ff": 40, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**size, vocab_size=VOCABULARY)).eval()


@torch.no_grad()
def tune(model: nn.Module, *, strength: float = 0.03) -> Any:
    """A copy in which every parameter was changed, matrices most of all in a few directions."""
    tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        parameter += strength * torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            for size in (9.0, 6.0, 4.0):
                left, right = (torch.randn(n, generator=generator) for n in parameter.shape)
                parameter += strength * size * torch.outer(left / left.norm(), right)
    return tuned.eval()


def inputs(family: str, seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator)}
    tokens = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if family == "t5" else {})


@torch.no_grad()
def logits(model: nn.Module, family: str) -> Tensor:
    return model(**inputs(family)).logits


@torch.no_grad()
def rebuilt(base: nn.Module, tuned: nn.Module, adapter: Any) -> Any:
    """The dense model that the adapter stands for: tuned, its updates replaced by the factors."""
    dense = copy.deepcopy(tuned)
    for update in adapter.updates:
        weight = base.get_submodule(update.name).weight + update.left @ update.right
        dense.get_submodule(update.name).weight = nn.Parameter(weight)
    return dense


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a BERT and of what became of it."""
    folder, base = tmp_path_factory.mktemp("pair"), tiny("bert")
    base.save_pretrained(folder / "base")
    tune(base).save_pretrained(folder / "tuned")
    return str(folder / "base"), str(folder / "tuned")


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Tensor, ...]]:
    """Logits by stock PEFT in its own process, by the dense rebuild, and by the tuned model."""
    folder, lines, expected = tmp_path_factory.mktemp("families"), [], {}
    for family in FAMILIES:
        base = tiny(family)
        base.save_pretrained(folder / family)
        tuned = tune(base)
        torch.save(inputs(family), folder / f"{family}.inputs")
        for label, options in (("full", {"threshold": 1}), ("small", {"size": 0.3})):
            adapter = extract_adapter(base, tuned, **options)
            adapter.save_pretrained(folder / f"{family}-{label}")
            dense = logits(rebuilt(base, tuned, adapter), family)
            expected[family, label] = (dense, logits(tuned, family))
            names = (family, f"{family}-{label}", f"{family}.inputs", f"{family}-{label}.logits")
            lines.append("|".join([type(base).__name__, *(str(folder / name) for name in names)]))
    run = subprocess.run(
        [sys.executable, "-c", STOCK_PEFT, *lines], capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr
    return {
        (family, label): (torch.load(folder / f"{family}-{label}.logits"), *values)
        for (family, label), values in expected.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_gives_the_tuned_logits_in_stock_peft(
    family: str, reloaded: dict[tuple[str, str], tuple[Tensor, ...]]
) -> None:
    found, _, tuned = reloaded[family, "full"]
    torch.testing.assert_close(found, tuned, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_peft_acts_as_the_dense_model_with_low_rank_updates(
    family: str, reloaded: dict[tuple[str, str], tuple[Tensor, ...]]
) -> None:
    found, dense, tuned = reloaded[family, "small"]
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-4)
    assert (found - tuned).abs().max() > 1e-3


def test_an_adapter_is_pushed_and_stock_peft_pulls_it(
    loopback_hub: LoopbackHub,  # noqa: F811
    pair: tuple[str, str],
    tmp_path: Path,
) -> None:
    push = "from hf_rmt import extract_adapter\n"
    push += f"extract_adapter(*{pair}, threshold=1).push_to_hub('adapter')"
    loopback_hub.run(f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\n" + push)
    files = loopback_hub.repos["user/adapter"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert pair[0] not in files["README.md"].decode() + files["adapter_config.json"].decode()
    torch.save(inputs("bert"), tmp_path / "inputs")
    name, outputs = "BertForSequenceClassification", tmp_path / "outputs"
    line = "|".join([name, pair[0], "user/adapter", str(tmp_path / "inputs"), str(outputs)])
    loopback_hub.run(STOCK_PEFT.replace("sys.argv[1:]", repr([line])))
    tuned = BertForSequenceClassification.from_pretrained(pair[1]).eval()
    torch.testing.assert_close(torch.load(outputs), logits(tuned, "bert"), rtol=0, atol=1e-4)


def test_paths_and_loaded_models_give_the_same_adapter(pair: tuple[str, str]) -> None:
    paths = extract_adapter(*pair, size=0.2)
    models = [BertForSequenceClassification.from_pretrained(path) for path in pair]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    loaded = extract_adapter(*models, size=0.2)
    assert paths.ranks == loaded.ranks
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("size", [0.05, 0.2, 0.5])
def test_the_budget_is_kept_and_used(size: float, pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, size=size)
    assert adapter.size <= size
    missing = size * sum(update.dense_parameters for update in adapter.updates) - adapter.parameters
    assert missing < min(sum(update.shape) for update in adapter.updates if update.rank)


def test_embeddings_take_factors_and_tiny_ones_are_carried(pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, threshold=1)
    assert adapter.ranks["bert.embeddings.word_embeddings"] == WIDTH
    assert "bert.embeddings.token_type_embeddings" in adapter.modules_to_save


def test_a_fixed_rank_is_the_same_everywhere(pair: tuple[str, str]) -> None:
    assert set(extract_adapter(*pair, rank=3).ranks.values()) == {3}


def test_targets_are_the_only_ones_with_factors(pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, size=0.3, target_modules=["query", "key"])
    assert {name.rsplit(".", 1)[1] for name in adapter.ranks} == {"query", "key"}
    assert "bert.embeddings.word_embeddings" in adapter.modules_to_save
    blocks = extract_adapter(*pair, size=0.3, target_modules=r".*layer\.1\..*")
    assert all(".layer.1." in name for name in blocks.ranks)


def test_a_head_that_the_base_lacks_is_carried_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(tiny("bert").config).save_pretrained(tmp_path / "base")
    start = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    tuned = tune(start)
    for base in (tmp_path / "base", BertModel.from_pretrained(tmp_path / "base")):
        adapter = extract_adapter(base, tuned, threshold=1)
        assert "classifier" in adapter.modules_to_save
        carried = adapter.carried["base_model.model.classifier.weight"]
        assert torch.equal(carried, tuned.classifier.weight)
        assert "bert.encoder.layer.0.output.dense" in adapter.ranks


def test_a_head_that_no_rule_of_peft_names_is_known_by_the_files_that_lack_it(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    ViTModel(tiny("vit").config).save_pretrained(tmp_path)
    start = ViTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    tuned = tune(start)
    assert "classifier" in extract_adapter(tmp_path, tuned, threshold=1).modules_to_save
    assert "classifier" in extract_adapter(start, tuned, threshold=1).ranks


def test_modules_that_peft_would_also_take_by_their_ending_are_carried() -> None:
    torch.manual_seed(0)
    base = LlamaModel(tiny("llama").config)
    tuned = copy.deepcopy(base)
    tuned.norm.weight.data += 1
    tuned.layers[0].self_attn.q_proj.weight.data += torch.randn(WIDTH, WIDTH)
    adapter = extract_adapter(base, tuned, rank=1)
    assert "layers.1.input_layernorm" in adapter.modules_to_save
    assert "base_model.model.layers.1.input_layernorm.weight" in adapter.carried
    assert list(adapter.ranks) == ["layers.0.self_attn.q_proj"]


def test_a_linear_of_which_only_the_bias_changed_carries_that_alone() -> None:
    base = tiny("bert")
    tuned = copy.deepcopy(base)
    layer = tuned.bert.encoder.layer[0].attention.self
    layer.query.weight.data += torch.randn(WIDTH, WIDTH)
    layer.key.bias.data += 1
    adapter = extract_adapter(base, tuned, rank=1)
    assert adapter.modules_to_save == ("classifier",)
    name = "base_model.model.bert.encoder.layer.0.attention.self.key.bias"
    assert set(adapter.carried) - {name} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }


def test_an_embedding_competes_in_units_of_its_own_entries() -> None:
    """LayerNorm follows: a hundred times the embedding and its update are worth the same."""
    base, scaled = tiny("bert"), tiny("bert")
    tuned = tune(base)
    scaled_tuned = copy.deepcopy(tuned)
    for model in (scaled, scaled_tuned):
        model.bert.embeddings.word_embeddings.weight.data *= 100
    assert (
        extract_adapter(scaled, scaled_tuned, size=0.2).ranks
        == extract_adapter(base, tuned, size=0.2).ranks
    )


def test_every_scale_is_one_and_every_rank_is_told(pair: tuple[str, str], tmp_path: Path) -> None:
    adapter = extract_adapter(*pair, size=0.2)
    adapter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["r"] == config["lora_alpha"] == max(adapter.ranks.values())
    assert sorted(config["rank_pattern"].values()) == sorted(filter(None, adapter.ranks.values()))
    assert config["base_model_name_or_path"] == pair[0]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    stored = sum(value.numel() for key, value in tensors.items() if "lora_" in key)
    assert stored == adapter.parameters


def test_factors_take_the_dtype_that_is_asked_for(pair: tuple[str, str]) -> None:
    adapter = extract_adapter(*pair, rank=2, dtype=torch.bfloat16)
    assert {update.left.dtype for update in adapter.updates} == {torch.bfloat16}


def test_calibration_brings_the_logits_closer(pair: tuple[str, str]) -> None:
    base, tuned = (BertForSequenceClassification.from_pretrained(path).eval() for path in pair)
    batches = [inputs("bert", seed) for seed in range(10, 30)]
    wanted, distances = logits(tuned, "bert"), []
    for calibration in (None, batches):
        adapter = extract_adapter(base, tuned, size=0.15, calibration=calibration)
        dense = rebuilt(base, tuned, adapter)
        for key, value in adapter.carried.items():
            name = key.removeprefix("base_model.model.").replace(".base_layer", "")
            dense.get_parameter(name).data.copy_(value)
        distances.append(float((logits(dense, "bert") - wanted).norm()))
    assert distances[1] < 0.9 * distances[0]


def test_the_bias_makes_up_for_the_mean_of_what_is_lost(pair: tuple[str, str]) -> None:
    base, tuned = (BertForSequenceClassification.from_pretrained(path).eval() for path in pair)
    batches = [inputs("bert", seed) for seed in range(10, 12)]
    name = "bert.encoder.layer.0.intermediate.dense"
    adapter = extract_adapter(base, tuned, rank=1, calibration=batches)
    update = next(update for update in adapter.updates if update.name == name)
    seen: list[Tensor] = []
    layer = tuned.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    for batch in batches:
        tuned(**batch)
    hook.remove()
    lost = layer.weight - base.get_submodule(name).weight - update.left @ update.right
    expected = layer.bias + lost @ torch.cat(seen).mean(0)
    found = adapter.carried[f"base_model.model.{name}.base_layer.bias"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_excitations_are_the_moments_of_inputs_and_gradients_without_padding() -> None:
    """Against autograd of a two-layer net, written out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.net(x)

    x, mask = torch.randn(5, 6, 4), torch.rand(5, 6) > 0.4
    found = excitations(Masked(), ["net.0", "net.2"], [{"x": x, "attention_mask": mask.long()}])
    probe = torch.randn(5, 6, 2, generator=torch.Generator().manual_seed(0))[mask]
    hidden = torch.tanh(net[0](x[mask]))
    slopes = probe @ net[2].weight * (1 - hidden**2)
    count = int(mask.sum())
    torch.testing.assert_close(found["net.0"].gradients, slopes.T @ slopes / count)
    torch.testing.assert_close(found["net.2"].gradients, probe.T @ probe / count)
    torch.testing.assert_close(found["net.0"].inputs, torch.cov(x[mask].T, correction=0))
    torch.testing.assert_close(found["net.0"].mean, x[mask].mean(0))
    torch.testing.assert_close(found["net.2"].inputs, hidden.T @ hidden / count)
    assert found["net.2"].mean is None
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.training


def one_layer_less() -> Any:
    config = tiny("bert").config
    config.num_hidden_layers = 1
    return BertForSequenceClassification(config)


def with_nan(model: Any) -> Any:
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    return model


def more_tokens() -> Any:
    model = tiny("bert")
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    return model


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        (lambda: tiny("bert"), "no matrix that could take factors differs"),
        (one_layer_less, "exists in base only"),
        (lambda: tiny("t5"), "differ in architecture"),
        (more_tokens, r"has shape \(43, 24\) in tuned and is \(40, 24\) in base"),
        (lambda: with_nan(tiny("bert")), "nan or infinite"),
    ],
)
def test_bad_pairs_end_in_clear_errors(tuned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_adapter(tiny("bert"), tuned())


def test_a_path_to_another_architecture_is_named(pair: tuple[str, str], tmp_path: Path) -> None:
    tiny("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'vit' and tuned a 'bert'"):
        extract_adapter(tmp_path, pair[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0.1, "rank": 2}, "exclude each other"),
        ({"size": 0}, r"size must lie in \(0, 1\], got 0"),
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"size": 1e-6}, "raise size"),
        ({"calibration": []}, "no batch"),
        ({"target_modules": ["nothing"]}, "nothing"),
    ],
)
def test_bad_options_end_in_clear_errors(
    options: dict[str, Any], message: str, pair: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=message):
        extract_adapter(*pair, **options)


def test_the_command_line_writes_an_adapter(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract-lora", *pair, str(tmp_path / "out"), "--size", "0.1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["size"] <= 0.1
    assert report["parameters"] == sum(layer["parameters"] for layer in report["layers"])
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert "rank" in (tmp_path / "out" / "README.md").read_text()
    assert main(["extract-lora", *pair, str(tmp_path / "all"), "--threshold", "0.5"]) == 0
    assert "of the matrices" in capsys.readouterr().out
    assert main(["extract-lora", pair[0], pair[0], str(tmp_path / "no")]) == 1
    assert "no matrix" in capsys.readouterr().err
