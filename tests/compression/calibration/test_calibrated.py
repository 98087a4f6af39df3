from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from hf_rmt import RMTConfig, SpikedLinear, compress
from hf_rmt.compression.calibration.calibrated import measured
from hf_rmt.compression.calibration.moments import Moments, sites
from hf_rmt.compression.targets.selection import compressible_layers
from tests.compression.calibration import calibrated_worker
from tests.compression.calibration.calibrated_worker import CONFIGS, batches
from tests.huggingface.models import tiny_model
from tests.processes import succeed

SELF = "encoder.layer.0.attention.self"
DROP = RMTConfig(method="svd", fraction=0.25, noise="drop")


def seen_inputs(model: nn.Module, name: str, given: list[dict[str, Tensor]]) -> Tensor:
    """Inputs of a layer at tokens that are no padding, shape (tokens, in)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, entry: seen.append(entry[0])
    )
    with torch.no_grad():
        for batch in given:
            model(**batch)
    handle.remove()
    kept = [part[batch["attention_mask"].bool()] for part, batch in zip(seen, given, strict=True)]
    return torch.cat(kept)


def test_layers_that_are_given_the_same_tensor_share_a_site() -> None:
    model = tiny_model("bert")
    names = [*compressible_layers(model, RMTConfig()), "pooler.dense"]
    found = sites(model, names, batches()[0])
    assert [len(members) for members in found.values()] == [3, 1, 1, 1, 1]
    assert found[f"{SELF}.query"] == [f"{SELF}.query", f"{SELF}.key", f"{SELF}.value"]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_tensor_changed_in_place_is_another_input() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x) + self.b(x)
            return first + self.c(x.add_(1))

    found = sites(Changing(), ["a", "b", "c"], {"x": torch.ones(2, 4)})
    assert found == {"a": ["a", "b"], "c": ["c"]}


def test_moments_are_those_of_the_tokens_without_padding() -> None:
    model, name = tiny_model("bert"), f"{SELF}.value"
    moments = Moments(model, {f"{SELF}.query": [f"{SELF}.query", name]}, gradients=False)
    moments.gather(batches())
    found = moments.measured_moments()[name]
    inputs = seen_inputs(model, name, batches())
    assert found.mean is not None
    torch.testing.assert_close(found.mean, inputs.mean(0), atol=1e-5, rtol=1e-4)
    expected = torch.cov(inputs.T, correction=0)
    torch.testing.assert_close(found.inputs, expected, atol=1e-5, rtol=1e-4)
    assert found.gradients is None


def test_gathering_leaves_the_model_as_it_was() -> None:
    model = tiny_model("bert").train()
    model.embeddings.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for gradients in (False, True):
        Moments(model, {f"{SELF}.query": [f"{SELF}.query"]}, gradients=gradients).gather(batches())
    assert all(module.training for module in model.modules())
    assert {key: value.requires_grad for key, value in model.named_parameters()} == wanted
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_stay_closer_than_without_calibration(config: dict[str, Any]) -> None:
    settings, size = RMTConfig(**config["settings"]), config.get("size")
    given = batches()
    with torch.no_grad():
        wanted = tiny_model("bert")(**given[0]).last_hidden_state
        errors = []
        for options in ({"calibration": given, "size": size}, {}):
            model = tiny_model("bert")
            compress(model, settings, **options)
            errors.append(float((model(**given[0]).last_hidden_state - wanted).square().mean()))
    assert errors[0] < 0.8 * errors[1]


def test_biases_keep_the_mean_outputs() -> None:
    before, model = tiny_model("bert"), tiny_model("bert")
    bias = model.get_submodule(f"{SELF}.query").bias
    compress(model, DROP, calibration=batches())
    layer = model.get_submodule(f"{SELF}.query")
    assert layer.bias is bias
    inputs = seen_inputs(before, f"{SELF}.query", batches())
    wanted = before.get_submodule(f"{SELF}.query")(inputs).mean(0)
    torch.testing.assert_close(layer(inputs).mean(0), wanted, atol=1e-5, rtol=1e-4)


def test_later_groups_see_what_was_done_to_earlier_ones() -> None:
    model = tiny_model("bert")
    names = compressible_layers(model, DROP)
    groups = measured(model, names, batches(), min_size=32, gradients=True)
    first, _ = next(groups)
    assert first[:3] == [f"{SELF}.{part}" for part in ("query", "key", "value")]
    for name in first:
        model.get_submodule(name).weight.data.zero_()
    second, excited = next(groups)
    inputs = seen_inputs(model, second[0], batches())
    expected = torch.cov(inputs.T, correction=0)
    torch.testing.assert_close(excited[second[0]].inputs, expected, atol=1e-5, rtol=1e-4)


def test_a_group_holds_no_more_entries_than_the_weights() -> None:
    model = tiny_model("t5")
    names = compressible_layers(model, RMTConfig())
    weights = sum(model.get_submodule(name).weight.numel() for name in names)
    tokens = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    given = [{"input_ids": tokens, "decoder_input_ids": tokens}]
    held = []
    for group, excited in measured(model, names, given, min_size=32, gradients=True):
        assert set(group) == set(excited)
        inputs = {id(part.inputs): part.inputs.numel() for part in excited.values()}
        held.append(sum(part.gradients.numel() for part in excited.values()) + min(inputs.values()))
    assert len(held) > 1
    assert max(held) <= weights


def test_ranks_are_shared_out_to_the_size() -> None:
    model, size = tiny_model("bert"), 0.3
    report = compress(model, RMTConfig(noise="drop"), calibration=batches(), size=size)
    assert 0.9 * size < report.plan.parameter_share <= size
    assert len({plan.rank for plan in report.plan}) > 1
    assert all(plan.rank >= 1 for plan in report.plan.compressed)
    whole = compress(tiny_model("bert"), RMTConfig(noise="drop"), calibration=batches(), size=1.0)
    assert whole.plan.parameter_share == 1.0
    assert not whole.plan.compressed
    assert "worth" in whole.plan.layers[0].reason


def test_an_iterator_serves_as_well_as_a_list() -> None:
    states = []
    for given in (batches(), iter(batches()), tuple(batches())):
        model = tiny_model("bert")
        compress(model, DROP, calibration=given)
        states.append(model.state_dict())
    for other in states[1:]:
        assert all(torch.equal(states[0][key], other[key]) for key in states[0])


def test_planning_tells_the_ranks_and_changes_nothing() -> None:
    model, config = tiny_model("bert"), RMTConfig(noise="drop")
    planned = compress(model, config, calibration=batches(), size=0.4, dry_run=True).plan
    state = tiny_model("bert").state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    done = compress(model, config, calibration=batches(), size=0.4).plan
    assert [plan.rank for plan in planned] == [plan.rank for plan in done]
    assert [plan.name for plan in done] == compressible_layers(tiny_model("bert"), config)


def test_what_was_calibrated_reloads_exactly(tmp_path: Path) -> None:
    model = tiny_model("bert")
    compress(model, RMTConfig(noise="int4"), calibration=batches())
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        difference = model(**batches()[0])[0] - again(**batches()[0])[0]
    assert not difference.any()


def test_a_layer_that_no_batch_reaches_is_compressed_without_and_says_so() -> None:
    model, plain = tiny_model("bert"), tiny_model("bert")
    for part in (model, plain):
        part.idle = nn.Linear(48, 48)
        part.idle.weight.data.copy_(part.encoder.layer[0].attention.self.query.weight)
    config = RMTConfig(
        method="svd", fraction=0.25, noise="drop", target_modules=["idle", "attention.self.query"]
    )
    report = compress(model, config, calibration=batches())
    compress(plain, config)
    assert "no batch reached" in {plan.name: plan.reason for plan in report.plan}["idle"]
    assert torch.equal(model.idle.weight, plain.idle.weight)
    query = f"{SELF}.query.weight"
    assert not torch.equal(model.state_dict()[query], plain.state_dict()[query])
    again = tiny_model("bert")
    again.idle = nn.Linear(48, 48)
    sized = compress(
        again,
        RMTConfig(noise="drop", target_modules=["idle", "attention.self.query"]),
        calibration=batches(),
        size=0.3,
    )
    assert type(again.idle) is nn.Linear
    assert isinstance(again.get_submodule(f"{SELF}.query"), SpikedLinear)
    assert "no batch reached" in {plan.name: plan.reason for plan in sized.plan}["idle"]


def test_layers_that_are_too_small_are_planned_as_without_calibration() -> None:
    config = RMTConfig(noise="int4", min_size=49)
    report = compress(tiny_model("bert"), config, calibration=batches())
    assert [plan.name for plan in report.plan] == compressible_layers(tiny_model("bert"), config)
    assert all("min_size" in plan.reason for plan in report.plan)


@pytest.mark.parametrize(
    ("calibration", "error", "words"),
    [
        ([], ValueError, "no batch"),
        (iter(()), ValueError, "no batch"),
        (batches()[0], TypeError, r"pass \[batch\]"),
        ([torch.ones(2, 3)], TypeError, "must be a mapping"),
    ],
)
def test_batches_that_are_none_are_refused(
    calibration: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        compress(tiny_model("bert"), DROP, calibration=calibration)


def test_inputs_that_are_not_finite_are_refused() -> None:
    model = tiny_model("bert")
    model.embeddings.word_embeddings.weight.data[5] = torch.nan
    given = [{"input_ids": torch.tensor([[5, 6]])}]
    with pytest.raises(ValueError, match=r"inputs of '.*query' hold nan or inf"):
        compress(model, DROP, calibration=given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0.5}, "pass calibration=batches"),
        ({"size": 1.5, "calibration": batches()}, r"size must lie in \(0, 1\]"),
        ({"size": 0.5, "calibration": batches(), "config": RMTConfig()}, "noise='int8'"),
        ({"size": 0.001, "calibration": batches()}, "one direction per layer needs"),
        ({"size": 1e-9, "calibration": batches()}, "allows 0 parameters"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compress(tiny_model("bert"), **({"config": RMTConfig(noise="drop")} | options))


def test_processes_with_batches_of_their_own_end_with_the_same_weights(tmp_path: Path) -> None:
    succeed(calibrated_worker.__file__, tmp_path, processes=2)
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(parts[0][key], parts[1][key]) for key in parts[0])
    for label, config in CONFIGS.items():
        model = tiny_model("bert")
        compress(
            model,
            RMTConfig(**config["settings"]),
            calibration=batches(),
            size=config.get("size"),
        )
        with torch.no_grad():
            alone = model(**batches()[0]).last_hidden_state
        # sums in another order, so near rounding thresholds other codes
        torch.testing.assert_close(parts[0][label], alone, atol=0.05, rtol=0.05)
    for rank in range(2):
        heard = (tmp_path / f"{rank}.txt").read_text()
        assert "process 1 failed while it ran the model on the calibration: " in heard
