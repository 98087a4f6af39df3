"""Adapters as stock PEFT sees them, where hf_rmt is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from hf_rmt import extract_adapter
from tests.hub.conftest import LoopbackHub, loopback_hub  # noqa: F401
from tests.huggingface.lora.adapters import FAMILIES, inputs, logits, rebuilt, tiny, tune

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
