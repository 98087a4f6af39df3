"""Adapters with calibration batches: excitations, and what they are good for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from hf_rmt import extract_adapter
from hf_rmt.compression.calibration.moments import measured_moments
from tests.huggingface.lora.adapters import inputs, logits, rebuilt


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
    found = measured_moments(
        Masked(), ["net.0", "net.2"], [{"x": x, "attention_mask": mask.long()}]
    )
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
