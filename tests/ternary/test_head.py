"""Ternary heads: what becomes of layers and activations, and that they save and load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_rmt import RMTCallback, RMTConfig, analyze, compress, export_dense
from hf_rmt.compression.targets.selection import select_layers
from hf_rmt.huggingface.saving.remote_code import remote_code
from hf_rmt.nn import StepActivation, TernaryLinear
from tests.huggingface.models import WIDTH
from tests.huggingface.training.training import classifier

HEAD = ["bert.pooler.dense", "classifier"]
BLOCK = "bert.encoder.layer.0.intermediate"
MATCHED = RMTConfig(method="ntk", activation="matched")


def batches(count: int = 6, size: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"input_ids": torch.randint(3, 50, (size, 7), generator=generator)} for _ in range(count)
    ]


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    return model(**(inputs or batches(1, 32)[0])).logits


def trained() -> BertForSequenceClassification:
    """A classifier whose head tells something apart, with a spread of the logits worth fitting."""
    model = classifier().eval()
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(6)
        model.classifier.weight.mul_(6)
        model.classifier.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def other(family: str) -> tuple[nn.Module, dict[str, torch.Tensor], list[str]]:
    torch.manual_seed(0)
    tokens = {"input_ids": torch.randint(3, 50, (16, 7))}
    if family == "vit":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = ViTConfig(**sizes, intermediate_size=100, image_size=32, patch_size=16)
        return (
            ViTForImageClassification(config).eval(),
            {"pixel_values": torch.randn(16, 3, 32, 32)},
            ["classifier"],
        )
    if family == "roberta":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = RobertaConfig(**sizes, intermediate_size=100, vocab_size=50)
        names = ["classifier.dense", "classifier.out_proj"]
        return RobertaForSequenceClassification(config).eval(), tokens, names
    sizes = {"d_model": WIDTH, "d_kv": 12, "d_ff": 100, "num_layers": 1, "num_heads": 4}
    tokens["input_ids"][:, -1] = 1
    names = ["classification_head.dense", "classification_head.out_proj"]
    config = T5Config(**sizes, vocab_size=50, decoder_start_token_id=0)
    return T5ForSequenceClassification(config).eval(), tokens, names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_ternary_with_steps_and_reloads_in_a_new_process(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = trained().to(dtype)
    dense = logits(model)
    report = compress(model, MATCHED, calibration=batches())
    assert [plan.name for plan in report.plan] == HEAD
    assert all(type(model.get_submodule(name)) is TernaryLinear for name in HEAD)
    assert isinstance(model.bert.pooler.activation, StepActivation)
    assert report.plan.bits_per_weight < 4
    assert "tau=" in report.plan.layers[0].reason
    expected = logits(model)
    assert not torch.equal(expected, dense)
    model.save_pretrained(tmp_path)
    torch.save((batches(1, 32)[0], expected), tmp_path / "expected.pt")
    code = (
        "import torch, hf_rmt\nfrom transformers import AutoModelForSequenceClassification as A\n"
        f"inputs, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"model = A.from_pretrained({str(tmp_path)!r}, dtype='auto').eval()\n"
        "with torch.no_grad():\n    assert torch.equal(model(**inputs).logits, expected)\n"
        "assert type(model.bert.pooler.activation).__name__ == 'StepActivation'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_refit_brings_the_logits_back() -> None:
    model, without = trained(), trained()
    dense = logits(model)
    compress(model, MATCHED, calibration=batches(12))
    told = RMTConfig(method="ntk", target_modules=["pooler.dense"], activation="matched")
    compress(without, told, calibration=batches(12))
    fitted, plain = ((logits(each) - dense).square().mean() for each in (model, without))
    assert fitted < plain
    assert fitted < 0.5 * dense.var(dim=0).mean()
    assert torch.allclose(logits(model).mean(0), dense.mean(0), atol=0.3 * float(dense.std()))


def test_kept_activations_stay_and_export_equals_the_ternary_model() -> None:
    model = trained()
    compress(model, RMTConfig(method="ntk", activation="keep"), calibration=batches())
    assert isinstance(model.bert.pooler.activation, nn.Tanh)
    dense = export_dense(model)
    assert type(dense.classifier) is nn.Linear
    torch.testing.assert_close(logits(dense), logits(model), rtol=1e-5, atol=1e-5)


def test_a_model_with_steps_has_no_dense_export() -> None:
    model = trained()
    compress(model, MATCHED, calibration=batches())
    with pytest.raises(ValueError, match=r"pooler\.activation.*activation='keep'"):
        export_dense(model)


def test_loading_makes_the_same_weights_as_memory_does(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    config = RMTConfig(method="ntk", activation="keep", sparsity=0.5)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path, quantization_config=config)
    compress(model, config)
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert float((model.classifier.dense() == 0).float().mean()) == 0.5
    with pytest.raises(ValueError, match="calibration=batches"):
        BertForSequenceClassification.from_pretrained(tmp_path, quantization_config=MATCHED)


@pytest.mark.parametrize("family", ["vit", "roberta", "t5"])
def test_other_heads(family: str, tmp_path: Path) -> None:
    model, inputs, names = other(family)
    dense = logits(model, inputs)
    report = compress(model, MATCHED, calibration=[inputs] * 2)
    assert [plan.name for plan in report.plan] == names
    assert [plan.step["function"] for plan in report.plan if plan.step] == ["tanh"] * (
        len(names) - 1
    )
    new = logits(model, inputs)
    assert (new - dense).var(dim=0).mean() < 0.3 * dense.var(dim=0).mean()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, inputs), new)


def test_blocks_on_request_have_their_own_activations_matched() -> None:
    model = trained()
    told = RMTConfig(method="ntk", target_modules=["intermediate.dense"], activation="matched")
    report = compress(model, told, calibration=batches())
    (plan,) = report.plan
    assert plan.name == f"{BLOCK}.dense"
    assert len(plan.step["thresholds"]) == 2
    assert isinstance(model.get_submodule(f"{BLOCK}.intermediate_act_fn"), StepActivation)


def test_a_dry_run_changes_nothing_and_plans_the_same_bits() -> None:
    model = trained()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    planned = compress(model, MATCHED, calibration=batches(), dry_run=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    done = compress(model, MATCHED, calibration=batches())
    assert [plan.bits for plan in planned.plan] == [plan.bits for plan in done.plan]


def test_random_weights_keep_the_size_and_need_data() -> None:
    model = trained()
    old = model.bert.pooler.dense.weight.detach().clone()
    config = RMTConfig(method="ntk", weights="random", sparsity=0.5)
    with pytest.raises(ValueError, match="calibration=batches"):
        compress(model, config)
    dense = logits(model)
    compress(model, config, calibration=batches(12))
    new = model.bert.pooler.dense.dense()
    assert float((new * old).mean()) ** 2 < 0.02 * float(old.square().mean()) ** 2
    assert float(new.square().mean() / old.square().mean()) == pytest.approx(1, abs=0.1)
    assert (logits(model) - dense).square().mean() < dense.var(dim=0).mean()


def test_tau_without_data_is_refused_unless_a_layer_norm_tells_it() -> None:
    with pytest.raises(ValueError, match="pass calibration=batches"):
        compress(trained(), MATCHED)


class Block(nn.Module):
    """A pre-norm MLP of random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(400), nn.Linear(400, 300)
        self.act, self.down = nn.GELU(), nn.Linear(300, 3)
        self.dummy_inputs = {"x": torch.randn(2, 400)}
        self.device = torch.device("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(self.norm(x))))


def test_tau_from_a_layer_norm_is_that_of_data(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    dense, plain, calibrated = Block(), Block(), Block()
    for model in (plain, calibrated):
        model.load_state_dict(dense.state_dict())
    told = compress(plain, MATCHED)
    assert "tau=" in caplog.text
    data = [{"x": torch.randn(4000, 400)}]
    measured = compress(calibrated, MATCHED, calibration=data)
    steps = [report.plan.layers[0].step for report in (told, measured)]
    assert steps[0]["thresholds"] == pytest.approx(steps[1]["thresholds"], rel=0.03)
    assert steps[0]["heights"] == pytest.approx(steps[1]["heights"], rel=0.03, abs=0.003)
    x = torch.randn(2000, 400)
    means = [float(each.act(each.up(each.norm(x))).mean().detach()) for each in (dense, calibrated)]
    # the step keeps the mean output of the activation, up to 600,000 samples' worth of noise
    assert means[0] == pytest.approx(means[1], abs=0.003)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(40, 40) for _ in range(3))
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.act(self.second(self.act(self.first(x)))))


def test_a_shared_activation_stays_and_steps_go_before_it() -> None:
    torch.manual_seed(0)
    model = Shared()
    x = torch.randn(64, 40)
    report = compress(model, MATCHED, calibration=[{"x": x}])
    assert isinstance(model.act, nn.ReLU)
    assert [plan.step and plan.step["function"] for plan in report.plan] == ["ReLU", "ReLU", None]
    with torch.no_grad():
        for layer, plan in zip((model.first, model.second), report.plan, strict=False):
            x = model.act(layer(x))
            assert sorted(x.unique().tolist()) == pytest.approx(sorted(set(plan.step["values"])))


def test_a_projection_before_the_blocks_is_no_head() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Module(), nn.Linear(8, 3))
    model[1].layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])
    assert select_layers(model, MATCHED) == ["2"]


def test_what_does_not_apply_is_refused() -> None:
    with pytest.raises(ValueError, match="TernaryCallback"):
        RMTCallback(MATCHED)
    with pytest.raises(ValueError, match=r"size=0\.5"):
        compress(trained(), MATCHED, calibration=batches(), size=0.5)
    with pytest.raises(ValueError, match="no batch"):
        compress(trained(), MATCHED, calibration=[])


def test_no_two_bundled_modules_define_the_same_constant() -> None:
    names: Counter[str] = Counter()
    for node in ast.parse(remote_code()).body:
        targets: list[Any] = node.targets if isinstance(node, ast.Assign) else []
        names.update(
            leaf.id for part in targets for leaf in ast.walk(part) if isinstance(leaf, ast.Name)
        )
    assert "LAYOUTS" in names
    assert [name for name, count in names.items() if count > 1] == []


def test_a_compressed_head_can_be_analysed() -> None:
    model = trained()
    compress(model, MATCHED, calibration=batches())
    assert [layer.name for layer in analyze(model)] == HEAD
