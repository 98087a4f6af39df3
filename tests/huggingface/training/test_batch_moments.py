"""Second moments of the batches that train a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer

from hf_rmt.huggingface.training import batch_moments
from hf_rmt.huggingface.training.batch_moments import BatchMoments
from hf_rmt.huggingface.training.choice import NOT_FINITE
from hf_rmt.huggingface.training.filter_callback import RMTCallback
from hf_rmt.plan import Cause
from tests.huggingface.training.training import arguments, classifier, sentences


class Twins(nn.Module):
    """Two linears of one input, one of their sum, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        self.third, self.idle = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.third(torch.tanh(self.first(x) + self.second(x)))


NAMES = ["first", "second", "third", "idle"]


def twins() -> Twins:
    torch.manual_seed(0)
    return Twins().train()


def steps(model: nn.Module, moments: BatchMoments, batches: list[dict[str, Any]]) -> None:
    moments.listen()
    for batch in batches:
        model(**batch).square().sum().backward()
    moments.stop()


def batch(seed: int, mask: Tensor | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, 7, 6, generator=generator), "attention_mask": mask}


def test_a_layer_that_only_some_batches_reach_has_the_moments_of_these() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor, attention_mask: Any, both: bool) -> Tensor:
            return self.out(self.a(x) + self.b(2 * x) if both else self.a(x))

    model = Either()
    moments = BatchMoments(model, ["a", "b", "out"])
    batches = [{**batch(seed), "both": seed % 2 == 1} for seed in range(4)]
    steps(model, moments, batches)
    excited = moments.measured_moments()
    for name, parts, scale in (("a", batches, 1), ("b", batches[1::2], 2)):
        inputs = torch.cat([scale * part["x"].reshape(-1, 6) for part in parts])
        torch.testing.assert_close(excited[name].inputs, inputs.T @ inputs / len(inputs))


def test_moments_are_those_of_the_batches() -> None:
    model, batches = twins(), [batch(seed) for seed in range(3)]
    moments = BatchMoments(model, NAMES)
    steps(model, moments, batches)
    excited = moments.measured_moments()
    assert set(excited) == {"first", "second", "third"}
    inputs = torch.cat([part["x"].reshape(-1, 6) for part in batches])
    expected = inputs.T @ inputs / len(inputs)
    torch.testing.assert_close(excited["first"].inputs, expected)
    torch.testing.assert_close(excited["second"].inputs, expected)
    outputs = torch.cat([model(**part).detach().reshape(-1, 4) for part in batches])
    slopes = 2 * outputs  # of the squares
    torch.testing.assert_close(excited["third"].gradients, slopes.T @ slopes / len(batches))


def test_padding_counts_for_nothing() -> None:
    model = twins()
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    moments, batches = BatchMoments(model, NAMES), [batch(1, mask)]
    steps(model, moments, batches)
    kept = batches[0]["x"][mask.bool()]
    torch.testing.assert_close(
        moments.measured_moments()["first"].inputs, kept.T @ kept / int(mask.sum())
    )


def test_an_evaluation_between_two_steps_is_not_heard() -> None:
    model = twins()
    moments = BatchMoments(model, NAMES)
    moments.listen()
    model.eval()  # some people train without dropout
    model(**batch(1)).sum().backward()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            model(**batch(11))
    moments.stop()
    inputs = batch(1)["x"].reshape(-1, 6)
    torch.testing.assert_close(
        moments.measured_moments()["first"].inputs, inputs.T @ inputs / len(inputs)
    )
    assert not any(part._forward_hooks for part in model.modules())


def test_of_many_tokens_some_count_and_gradients_keep_their_size() -> None:
    model = twins()
    moments, batches = BatchMoments(model, NAMES, tokens=7), [batch(1)]
    steps(model, moments, batches)
    excited = moments.measured_moments()
    thin = batches[0]["x"].reshape(-1, 6)[::3]
    torch.testing.assert_close(excited["first"].inputs, thin.T @ thin / 7)
    slopes = 2 * model(**batches[0]).detach().reshape(-1, 4)[::3]
    torch.testing.assert_close(excited["third"].gradients, 3 * slopes.T @ slopes)


def test_of_a_wide_side_the_diagonal_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, model = BatchMoments(twins(), NAMES), twins()
    batches = [batch(0), batch(1)]
    steps(whole.model, whole, batches)
    monkeypatch.setattr(batch_moments, "WIDEST", 4)
    thin = BatchMoments(model, NAMES)
    steps(model, thin, batches)
    expected, found = whole.measured_moments()["third"], thin.measured_moments()["third"]
    torch.testing.assert_close(found.inputs, expected.inputs.diagonal())
    torch.testing.assert_close(found.gradients, expected.gradients)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "same", "kernel_size": (2, 4)},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": (1, 2), "padding_mode": "circular"},
        {"padding": "valid"},
        {"padding": 0},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
def test_patches_are_what_the_filters_of_a_convolution_see(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    layer = nn.Conv2d(3, 4, **{"kernel_size": 3, "bias": False, **options})
    patches = batch_moments._patches(layer, images)
    outputs = functional.linear(patches, layer.weight.flatten(1))
    torch.testing.assert_close(outputs.transpose(1, 2), layer(images).flatten(2))


def test_convolutions_of_one_image_that_read_it_otherwise_share_nothing() -> None:
    model = nn.ModuleDict({"wide": nn.Conv2d(3, 4, 3, padding=1), "narrow": nn.Conv2d(3, 4, 1)})

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["wide"](x) + self.parts["narrow"](x)

    block, names = Block().train(), ["parts.wide", "parts.narrow"]
    moments = BatchMoments(block, names)
    images = torch.randn(2, 3, 8, 8)
    steps(block, moments, [{"x": images}, {"x": images}])
    excited = moments.measured_moments()
    assert excited["parts.wide"].inputs.shape == (27, 27)
    pixels = images.flatten(2).transpose(1, 2).reshape(-1, 3)
    torch.testing.assert_close(excited["parts.narrow"].inputs, pixels.T @ pixels / len(pixels))


class NotANumber(Trainer):
    """Its loss is nan."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model(**inputs).loss * float("nan")


def test_a_loss_that_is_no_number_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = NotANumber(
        classifier(), arguments(tmp_path), train_dataset=sentences(), callbacks=[RMTCallback()]
    )
    trainer.train()
    assert "gave nan or inf to 6 layers" in caplog.text
    assert "size='auto' keeps" not in caplog.text
    plan = trainer.model.compression_report.plan
    assert {layer.reason for layer in plan} == {NOT_FINITE}
    assert {layer.cause for layer in plan} == {Cause.NOT_FINITE}


@pytest.mark.parametrize("block", [1, 2, 3, 6])
def test_sums_in_blocks_are_those_of_the_whole_matrix(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, made = [batch(0), batch(1)], {}
    for name, side in {"whole": 512, "blocks": block}.items():
        monkeypatch.setattr(batch_moments, "BLOCK", side)
        moments = BatchMoments(twins(), NAMES)
        steps(moments.model, moments, batches)
        made[name] = moments.measured_moments()
    for name, whole in made["whole"].items():
        torch.testing.assert_close(made["blocks"][name].inputs, whole.inputs)
        torch.testing.assert_close(made["blocks"][name].gradients, whole.gradients)
