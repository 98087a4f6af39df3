"""Sums over what a last layer is given and what it gave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_rmt.ternary.regression import outputs_of, regression

WIDTH, LABELS = 5, 3


class Tagger(nn.Module):
    """A last layer that is called on each token, and once more on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, LABELS)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.body(x)
        self.last(hidden)
        return self.last(hidden.mean(1))


def batches(masked: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in (4, 3):
        batch = {"x": torch.randn(size, 7, WIDTH, generator=generator)}
        if masked:
            batch["attention_mask"] = (torch.rand(size, 7, generator=generator) < 0.6).long()
        made.append(batch)
    return made


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_as_they_are_now_meet_the_outputs_that_were(
    masked: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, data = Tagger().to(dtype), batches(masked)
    for batch in data:
        batch["x"] = batch["x"].to(dtype)
    outputs = outputs_of(model, "last", data)
    with torch.no_grad():
        given = [model.body(batch["x"]) for batch in data]
        gave = [model.last(entry) for entry in given], [model.last(h.mean(1)) for h in given]
        model.body.weight.mul_(0.5)
        given = [model.body(batch["x"]) for batch in data]
    kept = [batch.get("attention_mask", torch.ones(len(batch["x"]), 7)).bool() for batch in data]
    tokens = [each[mask] for each, mask in zip(given, kept, strict=True)]
    targets = [each[mask] for each, mask in zip(gave[0], kept, strict=True)]
    x = torch.cat([*tokens, *(each.mean(1) for each in given)]).double()
    y = torch.cat([*targets, *gave[1]]).double()
    fitted, held = regression(model, "last", data, outputs)
    assert 0 < held.count < 0.5 * fitted.count
    found = fitted + held
    assert float(found.count) == len(x)
    for value, expected in (
        (found.inputs, x.sum(0)),
        (found.outputs, y.sum(0)),
        (found.squares, x.T @ x),
        (found.products, x.T @ y),
        (found.energies, y.square().sum(0)),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-4)
