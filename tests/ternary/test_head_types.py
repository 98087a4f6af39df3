"""Every kind of head of transformers gets its step, which trains, saves and loads."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_rmt import RMTConfig, compress
from hf_rmt.nn import StepActivation, StepBefore
from tests.ternary.head_types import CALLED, REPLACED, batches, correlation, head_type, logits

MATCHED = RMTConfig(method="ntk", activation="matched")


def given_to(model: nn.Module, name: str) -> torch.Tensor:
    """What a layer is given on new rows."""
    given: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, entry, result: given.append(entry[0]))
    logits(model)
    handle.remove()
    return torch.cat(given)


@pytest.mark.parametrize("name", [*REPLACED, *CALLED])
def test_a_head_gets_its_step_which_gives_its_levels_trains_and_reloads(
    name: str, tmp_path: Path
) -> None:
    model: Any = head_type(name)
    plan = compress(model, MATCHED, calibration=batches()).plan
    hidden, last = plan.layers[-2:]
    assert hidden.step is not None
    assert hidden.reason.startswith("step for ")
    levels = hidden.step["heights" if name in REPLACED else "values"]
    if name in CALLED:
        assert hidden.step["function"] == CALLED[name][0]
        assert type(model.get_submodule(hidden.name).step) is StepBefore
    if name != "modernbert":  # it has a norm between the step and the last layer
        found = given_to(model, last.name).unique()
        distances = (found[:, None] - torch.tensor(levels)).abs().min(dim=1).values
        assert len(found) == 2
        assert float(distances.max()) < 1e-6 * max(1.0, max(map(abs, levels)))
    check_reload(model, tmp_path)
    model.train()
    model(**batches(1)[0], labels=torch.arange(64) % 3).loss.backward()
    below = [weight for weight in model.base_model.parameters() if weight.grad is not None]
    assert max(float(weight.grad.abs().max()) for weight in below) > 0


def check_reload(model: Any, folder: Path) -> None:
    """A loaded model has the state and the outputs of the saved one, bit for bit."""
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder).eval()
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(ValueError, match="is a step activation"):
        again.dequantize()
    assert "are steps with the Gaussian moments" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "deberta-v2", "t5", "bart"])
def test_the_default_is_the_better_of_both(name: str) -> None:
    dense = head_type(name)
    models = {way: copy.deepcopy(dense) for way in ("auto", "matched", "keep")}
    found, wanted = {}, logits(dense)
    for way, model in models.items():
        compress(model, RMTConfig(method="ntk", activation=way), calibration=batches())
        found[way] = correlation(logits(model), wanted)
    assert found["auto"] == max(found.values())


def test_a_step_before_a_function_comes_back_in_a_new_process(tmp_path: Path) -> None:
    model = head_type("distilbert")
    compress(model, MATCHED, calibration=batches())
    model.save_pretrained(tmp_path)
    expected = tmp_path / "expected.pt"
    torch.save((model.state_dict(), logits(model)), expected)
    code = (
        "import torch, hf_rmt\nfrom transformers import AutoModelForSequenceClassification as A\n"
        "from tests.ternary.head_types import logits\n"
        f"model = A.from_pretrained({str(tmp_path)!r}).eval()\n"
        f"state, expected = torch.load({str(expected)!r})\n"
        "found = model.state_dict()\nassert found.keys() == state.keys()\n"
        "assert all(torch.equal(found[key], state[key]) for key in state)\n"
        "assert (logits(model) - expected).abs().max() <= 1e-6\n"
        "assert type(model.pre_classifier.step).__name__ == 'StepBefore'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_a_head_is_exported_with_its_step(name: str) -> None:
    model: Any = head_type(name)
    model.set_attn_implementation("eager")
    compress(model, MATCHED, calibration=batches())
    tokens = batches(1, 3)[0]["input_ids"]
    with torch.no_grad():
        told = {"dynamic_shapes": {"input_ids": {0: torch.export.Dim("batch")}}}
        graph = torch.export.export(model, (), {"input_ids": tokens}, **told).module()
        more = batches(1, 40, seed=5)[0]["input_ids"]
        torch.testing.assert_close(
            graph(input_ids=more).logits, model(input_ids=more).logits, rtol=1e-4, atol=1e-5
        )


def test_a_module_is_still_replaced_where_it_can_be() -> None:
    model: Any = head_type("bert")
    compress(model, MATCHED, calibration=batches())
    assert type(model.bert.pooler.activation) is StepActivation
    assert model.bert.pooler.dense.step is None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_no_adapter_goes_around_a_layer_that_ends_with_a_step() -> None:
    peft = pytest.importorskip("peft")
    model: Any = head_type("roberta")
    compress(model, MATCHED, calibration=batches())
    with pytest.raises(ValueError, match=r"after the step activation.*activation='keep'"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["classifier.dense"]))
    around = peft.get_peft_model(model, peft.LoraConfig(target_modules=["classifier.out_proj"]))
    assert "lora_A" in str(around)
