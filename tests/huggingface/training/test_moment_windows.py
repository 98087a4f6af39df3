"""Which steps are measured before each choice of directions, and how many of their tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_rmt.huggingface.training.batch_moments import TOKENS
from hf_rmt.huggingface.training.moment_windows import GATHERED, TOKENS_AGAIN, MomentWindows


def windows(chosen_at: int | None, *choices: int) -> MomentWindows:
    model = nn.Sequential(nn.Linear(4, 3))
    return MomentWindows(model, ["0"], choices, chosen_at=chosen_at)


@pytest.mark.parametrize("chosen_at", [None, 40])
def test_the_last_steps_before_a_choice_are_measured(chosen_at: int | None) -> None:
    window = windows(chosen_at, 40, 60, 100)
    due = next(step for step in (40, 60) if step > (chosen_at or 0))
    first = max(chosen_at or 0, due - GATHERED)
    assert [step for step in range(due + 1) if window.gathers(step)] == list(range(first, due))
    assert [step for step in range(due + 1) if window.due(step)] == [due]


def test_after_the_last_choice_nothing_is_measured() -> None:
    window = windows(40, 20, 40)
    assert window.choices == []
    assert not any(window.gathers(step) or window.due(step) for step in range(99))


@pytest.mark.parametrize(("chosen_at", "most"), [(None, TOKENS), (40, TOKENS_AGAIN)])
def test_later_choices_take_fewer_tokens_of_a_batch(chosen_at: int | None, most: int) -> None:
    window, rows = windows(chosen_at, 30, 60), torch.randn(3 * TOKENS, 4, requires_grad=True)
    window.step_begins(window.choices[0] - 1)
    window.model(rows).sum().backward()
    assert float(window._opened().sums["0 tokens"]) == most
    found = window.take(window.choices[0])["0"]
    seen = rows[:: len(rows) // most].detach()
    torch.testing.assert_close(found.inputs, seen.T @ seen / most)


def test_sums_of_a_window_go_on_after_a_break(tmp_path: Path) -> None:
    args = SimpleNamespace(output_dir=tmp_path, process_index=0)
    rows = torch.randn(2, 10, 4, requires_grad=True)
    whole, first, second = (windows(None, 30) for _ in range(3))
    for window, batches in ((whole, rows), (first, rows[:1])):
        window.step_begins(20)
        for batch in batches:
            window.model(batch).sum().backward()
    first.save(args, 21)
    second.load(args, str(tmp_path), 21)
    second.model.load_state_dict(whole.model.state_dict())
    second.step_begins(21)
    second.model(rows[1]).sum().backward()
    torch.testing.assert_close(second.take(30)["0"].inputs, whole.take(30)["0"].inputs)
