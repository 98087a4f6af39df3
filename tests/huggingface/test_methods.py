"""Every method on every family: compressed while loading and in memory, saved, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_rmt import RMTCallback, RMTConfig, SpikedLinear, analyze, compress
from hf_rmt.settings import spectral_methods
from tests.huggingface.models import FAMILIES, outputs, tiny_model
from tests.huggingface.training.training import arguments, classifier, sentences

KEPT: dict[str, dict[str, Any]] = {
    "svd": {"rank": 4},
    "slr": {"rank": 4},
    "magnitude": {"fraction": 0.3},
    "uniform": {"fraction": 0.3},
}
METHODS = spectral_methods()
QUERY = "bert.encoder.layer.0.attention.self.query"
PRUNING = ("magnitude", "uniform")


def config(method: str, **changes: Any) -> RMTConfig:
    return RMTConfig(**{"method": method, "noise": "drop", **KEPT.get(method, {}), **changes})


@pytest.mark.parametrize(
    ("family", "method"),
    [("bert", method) for method in METHODS]
    + [(family, method) for family in FAMILIES[1:] for method in ("bema", "slr", "uniform")],
)
def test_loading_and_compressing_agree_and_reload(family: str, method: str, tmp_path: Path) -> None:
    model, folder = tiny_model(family), tmp_path / "dense"
    model.save_pretrained(folder)
    model_class = type(model)
    loaded = model_class.from_pretrained(folder, quantization_config=config(method))
    in_memory = model_class.from_pretrained(folder)
    report = compress(in_memory, config(method))
    assert len(report.plan.changed) == len(report.plan)
    replaced = any(isinstance(module, SpikedLinear) for module in in_memory.modules())
    assert replaced is (method not in PRUNING)
    expected = outputs(in_memory, family)
    torch.testing.assert_close(outputs(loaded, family), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs(model_class.from_pretrained(folder), family), expected)
    in_memory.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert torch.equal(outputs(again, family), expected)
    if replaced:
        assert again.config.quantization_config.method == method
    else:
        assert not hasattr(again.config, "quantization_config")


@pytest.mark.parametrize("method", METHODS)
def test_analysis_by_every_method(method: str, tmp_path: Path) -> None:
    report = analyze(tiny_model("bert"), method=method, **KEPT.get(method, {}))
    report.save(tmp_path)
    assert type(report).from_json(tmp_path / "report.json").table() == report.table()
    lawful = method in ("pdb", "power-law", "bema", "kernel")
    assert all((layer.fit.law is not None) is lawful for layer in report)
    kept = {"svd": 4, "slr": 4, "magnitude": 0, "uniform": 0}
    if not lawful:
        assert {layer.fit.n_spikes for layer in report} == {kept[method]}
    assert analyze(tiny_model("bert"), config(method)).table() == report.table()


def test_an_analysis_takes_a_config_or_keywords() -> None:
    with pytest.raises(ValueError, match=r"a config and rank were given.*replace\(rank=\.\.\.\)"):
        analyze(tiny_model("bert"), config("svd"), rank=3)
    with pytest.raises(TypeError, match="config must be an RMTConfig, got 'svd'"):
        analyze(tiny_model("bert"), "svd")  # type: ignore[arg-type]


@pytest.mark.parametrize("of", ["weights", "update"])
@pytest.mark.parametrize("method", ["bema", "svd", "slr", "magnitude", "uniform"])
def test_every_method_filters_while_training(method: str, of: Any, tmp_path: Path) -> None:
    model = classifier()
    query = model.get_submodule(QUERY)
    start = query.weight.detach().clone()
    callback = RMTCallback(config(method), schedule=1, target=of, log="layers")
    trainer = Trainer(
        model, arguments(tmp_path, max_steps=3), train_dataset=sentences(24), callbacks=[callback]
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if f"rmt/{QUERY}/stable_rank" in log]
    assert len(logs) >= 3
    assert (f"rmt/{QUERY}/upper_edge" in logs[0]) is (method == "bema")
    layer = model.get_submodule(QUERY)
    if of == "weights" and method not in PRUNING:
        assert isinstance(layer, SpikedLinear)
        weight = layer.dense().detach()
    else:
        weight = layer.weight.detach()
    matrix = weight - start if of == "update" else weight
    if method in PRUNING:
        share = float((matrix != 0).float().mean())
        assert share == pytest.approx(0.3, abs=0.01)
    elif method in KEPT:
        values = torch.linalg.svdvals(matrix.double())
        assert int((values > 1e-5 * values[0]).sum()) == 4
    assert not torch.equal(weight, start)


def test_a_layer_that_noise_removal_does_not_name_stays_untouched() -> None:
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    query, key = (f"encoder.layer.0.attention.self.{part}" for part in ("query", "key"))
    report = compress(model, config("pdb", noise_removal={query: 1.0, key: 0.9}))
    ranks = {plan.name: plan.rank for plan in report.plan if plan.compressed}
    assert set(ranks) == {query, key}
    assert ranks[key] > ranks[query]
    touched = {name for name in before if name.startswith((query, key))}
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in set(before) - touched)
