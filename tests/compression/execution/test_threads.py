from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hf_rmt import RMTConfig, analyze, compress
from hf_rmt.compression.execution import threads
from hf_rmt.compression.execution.threads import is_small, map_over_threads, suited_threads
from hf_rmt.compression.methods.laws import PopulationDoubleBulk
from hf_rmt.nn.counterparts import compressed_layers
from tests.huggingface.models import tiny_model

SMALL, LARGE = (64, 64), (2048, 2048)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model_with_spikes() -> nn.Sequential:
    """Four layers; the last bits of decomposing the two of width 768 depend on the threads."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(768, 768), (96, 96), (192, 96), (1024, 768)]
    model = nn.Sequential(*(nn.Linear(columns, rows) for rows, columns in shapes))
    for layer in model:
        weight = layer.weight
        left = torch.randn(len(weight), 5, generator=generator)
        right = torch.randn(5, weight.shape[1], generator=generator)
        noise = torch.randn(weight.shape, generator=generator)
        weight.data.copy_(noise + left @ right / 4)
        layer.bias.data.zero_()
    return model


@pytest.mark.parametrize("noise", ["int8", "keep", "drop"])
def test_any_number_of_threads_gives_the_same_bits(noise: str) -> None:
    states, plans, spectra = [], [], []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        model = model_with_spikes()
        config = RMTConfig(noise=noise, target_modules="all-linear")
        spectra.append(analyze(model, config).to_dict())
        plans.append(compress(model, config).plan.to_dict())
        states.append(model.state_dict())
    assert any(layer["outcome"] != "kept" for layer in plans[0].values())
    assert plans[0] == plans[1] == plans[2]
    assert spectra[0] == spectra[1] == spectra[2]
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[key], value) for key, value in states[0].items())


def test_two_small_weights_are_worked_on_at_the_same_time_by_one_thread_each() -> None:
    both = threading.Barrier(2)

    def work(item: int) -> tuple[int, int]:
        both.wait(30)  # raises an error where nobody else comes
        return item, torch.get_num_threads()

    assert list(map_over_threads(work, range(4), [SMALL] * 4)) == [(n, 1) for n in range(4)]
    assert torch.get_num_threads() == 2


def test_one_thread_has_one_weight_in_flight_on_the_thread_that_asks() -> None:
    torch.set_num_threads(1)
    done = []

    def work(item: int) -> threading.Thread:
        done.append(item)
        return threading.current_thread()

    outcomes = map_over_threads(work, range(3), [SMALL] * 3)
    assert next(outcomes) is threading.current_thread()
    assert done == [0]


def test_a_large_weight_waits_until_it_is_alone_and_has_all_threads() -> None:
    running: set[int] = set()
    seen = {}

    def work(item: int) -> int:
        running.add(item)
        seen[item] = set(running), torch.get_num_threads()
        running.discard(item)
        return item

    shapes = [SMALL, LARGE, SMALL]
    assert list(map_over_threads(work, range(3), shapes)) == [0, 1, 2]
    assert seen[1] == ({1}, 2)


def test_no_more_weights_are_in_flight_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "IN_FLIGHT", 3 * 64 * 64)
    torch.set_num_threads(4)
    begun: list[int] = []
    hold = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        assert item or hold.wait(30)
        return item

    outcomes = map_over_threads(work, range(8), [SMALL] * 8)
    threading.Timer(0.3, hold.set).start()
    assert next(outcomes) == 0
    assert sorted(begun) == [0, 1, 2]
    assert list(outcomes) == list(range(1, 8))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_comes_in_its_turn_and_leaves_the_number_of_threads(
    error: type[BaseException],
) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise error("stop")
        return item

    found = []
    with pytest.raises(error, match="stop"):
        found.extend(map_over_threads(work, range(5), [SMALL] * 5))
    outcomes = map_over_threads(work, range(5), [SMALL] * 5)
    assert [next(outcomes), next(outcomes)] == [0, 1]
    with pytest.raises(error, match="stop"):
        next(outcomes)
    assert torch.get_num_threads() == 2


def test_a_map_that_is_left_early_ends_its_threads() -> None:
    before = threading.active_count()
    outcomes = map_over_threads(lambda item: item, range(100), [SMALL] * 100)
    assert next(outcomes) == 0
    outcomes.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_an_error_while_a_layer_is_replaced_ends_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = threading.active_count()

    def fail(*args: Any, **told: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_rmt.compression.apply.apply_plan", fail)
    with pytest.raises(KeyboardInterrupt):
        compress(model_with_spikes(), RMTConfig(target_modules="all-linear"))
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_layers_after_one_that_fails_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    decide, model = PopulationDoubleBulk.decide, model_with_spikes()

    def stop(self: Any, name: str, weight: Any, settings: Any) -> Any:
        if name == "2":
            raise ValueError("stop")
        return decide(self, name, weight, settings)

    monkeypatch.setattr(PopulationDoubleBulk, "decide", stop)
    with pytest.raises(ValueError, match="stop"):
        compress(model, RMTConfig(target_modules="all-linear"))
    assert set(compressed_layers(model)) == {"0", "1"}
    assert {layer.name for layer in model.compression_report.plan} == {"0", "1"}


def test_modes_of_torch_are_those_of_the_caller() -> None:
    def work(item: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.no_grad():
        assert list(map_over_threads(work, range(3), [SMALL] * 3)) == [(False, False)] * 3
    with torch.inference_mode():
        assert list(map_over_threads(work, range(3), [SMALL] * 3)) == [(False, True)] * 3
    assert list(map_over_threads(work, range(3), [SMALL] * 3)) == [(True, False)] * 3


def test_a_method_that_does_not_allow_it_decides_on_one_weight_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decide, on = PopulationDoubleBulk.decide, set()

    def note(self: Any, name: str, weight: Any, settings: Any) -> Any:
        on.add(threading.current_thread())
        return decide(self, name, weight, settings)

    monkeypatch.setattr(PopulationDoubleBulk, "decide", note)
    monkeypatch.setattr(PopulationDoubleBulk, "concurrent", False)
    compress(tiny_model("bert"), RMTConfig())
    assert on == {threading.current_thread()}


def test_a_small_weight_has_one_thread_and_a_large_one_all() -> None:
    for shape, count in ((SMALL, 1), ((768, 3072), 1), (LARGE, 2), ((30000, 768), 2)):
        assert is_small(shape) == (count == 1)
        with suited_threads(shape):
            assert torch.get_num_threads() == count
    with pytest.raises(ValueError, match="stop"), suited_threads(SMALL):
        raise ValueError("stop")
    assert torch.get_num_threads() == 2
