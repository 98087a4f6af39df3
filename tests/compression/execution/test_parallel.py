from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_rmt import RMTConfig, SpikedLinear, compress
from hf_rmt.compression.apply import compress_shared
from hf_rmt.compression.execution.parallel import assign, map_over_processes, matrix_cost
from hf_rmt.compression.targets.selection import compressible_layers
from tests.compression.execution import parallel_worker
from tests.huggingface.models import tiny_model
from tests.huggingface.training.training import sentences
from tests.processes import succeed


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[Any]]:
    """Folder, tensors and texts of two processes that ran the worker."""
    folder = tmp_path_factory.mktemp("processes")
    succeed(parallel_worker.__file__, folder, processes=2)
    tensors = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    texts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return folder, tensors, texts


def test_the_longest_work_is_given_out_first() -> None:
    assert assign([1.0, 5.0, 3.0, 3.0, 2.0], 2) == [1, 0, 1, 1, 0]
    assert assign([1.0, 2.0], 1) == [0, 0]
    assert assign([], 3) == []


def test_no_process_is_busier_than_the_bound_of_longest_first() -> None:
    costs, count = [7.0, 6.0, 5.0, 4.0, 3.0, 3.0, 2.0], 3
    owners = assign(costs, count)

    def busiest(owners: Any) -> float:
        loads = [0.0] * count
        for owner, cost in zip(owners, costs, strict=True):
            loads[owner] += cost
        return max(loads)

    best = min(map(busiest, itertools.product(range(count), repeat=len(costs))))
    assert busiest(owners) <= (4 / 3 - 1 / (3 * count)) * best


def test_assigning_to_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="n_processes must be at least 1, got 0"):
        assign([1.0], 0)


def test_the_cost_of_a_matrix_is_that_of_its_smaller_side() -> None:
    assert matrix_cost((100, 10)) == matrix_cost((10, 100)) == 100 * 10**2 + 8 * 10**3


def test_one_process_works_on_one_item_at_a_time() -> None:
    done: list[int] = []

    def work(item: int) -> tuple[int, dict[str, torch.Tensor]]:
        done.append(item)
        return item, {}

    outcomes = map_over_processes(work, [3, 4], [1.0, 9.0])
    assert next(outcomes) == (3, {})
    assert done == [3]


@pytest.mark.parametrize("noise", ["int8", "keep", "drop"])
def test_compressing_shared_is_compressing(noise: str) -> None:
    alone, shared = tiny_model("bert"), tiny_model("bert")
    config = RMTConfig(noise=noise, modules_to_not_convert=["key"])
    expected = compress(alone, config).plan.to_dict()
    found = compress_shared(shared, compressible_layers(shared, config), config).plan.to_dict()
    for name, entry in expected.items():
        assert found[name] | {"latency": 0} == entry | {"latency": 0}
    states = alone.state_dict(), shared.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_layer_whose_factors_would_be_larger_stays_dense_and_loses_its_noise() -> None:
    alone, shared = tiny_model("bert"), tiny_model("bert")
    config = RMTConfig(noise="drop", noise_removal=0.1)
    compress(alone, config)
    compress_shared(shared, compressible_layers(shared, config), config)
    name = "encoder.layer.0.attention.self.query"
    assert type(shared.get_submodule(name)) is nn.Linear
    assert torch.equal(alone.get_submodule(name).weight, shared.get_submodule(name).weight)
    assert not torch.equal(
        shared.get_submodule(name).weight, tiny_model("bert").get_submodule(name).weight
    )


def test_a_shared_layer_keeps_the_bias_parameter_and_the_mode() -> None:
    model, config = tiny_model("bert").eval(), RMTConfig()
    bias = model.encoder.layer[0].output.dense.bias
    compress_shared(model, compressible_layers(model, config), config)
    layer = model.encoder.layer[0].output.dense
    assert isinstance(layer, SpikedLinear)
    assert layer.bias is bias
    assert layer.weight.requires_grad
    assert not layer.training


def test_planning_changes_nothing() -> None:
    model, config = tiny_model("bert"), RMTConfig(noise="drop")
    report = compress_shared(model, compressible_layers(model, config), config, dry_run=True)
    state = tiny_model("bert").state_dict()
    assert len(report.plan.compressed) == 6
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_two_processes_end_with_what_one_computes_bit_for_bit(processes: Any) -> None:
    _, tensors, _ = processes
    for noise in parallel_worker.NOISES:
        model, config = tiny_model("t5"), RMTConfig(noise=noise)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        compress_shared(model, compressible_layers(model, config), config)
        torch.set_num_threads(threads)
        for key, value in model.state_dict().items():
            assert all(torch.equal(part[f"{noise}.{key}"], value) for part in tensors), key


def test_every_process_ends_with_the_same_trained_and_compact_model(processes: Any) -> None:
    folder, tensors, texts = processes
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    shapes = [tensors[0][key].shape for key in tensors[0] if key.endswith("self.query.weight")]
    assert (48, 48) not in shapes
    saved = AutoModelForSequenceClassification.from_pretrained(folder / "saved")
    batch = torch.stack([entry["input_ids"] for entry in sentences(4)])
    trained = {
        key.removeprefix("trained."): value
        for key, value in tensors[0].items()
        if key.startswith("trained.")
    }
    before = saved(batch).logits
    saved.load_state_dict(trained)
    assert torch.equal(saved(batch).logits, before)
    spectra = [[entry for entry in text["log"] if "rmt/spikes" in entry] for text in texts]
    assert spectra[0] == spectra[1]
    assert [entry["step"] for entry in spectra[0]] == [0, 2, 4]


def test_tensors_of_any_dtype_and_shape_arrive_from_their_owner(processes: Any) -> None:
    _, tensors, _ = processes
    owners = assign([1.0, 5.0, 2.0, 1.0, 1.0], 2)
    assert tensors[1]["kinds.plain"].tolist() == [[item, owners[item]] for item in range(5)]
    for rank, item in itertools.product(range(2), range(5)):
        values = torch.arange(item * 3, dtype=torch.float32).reshape(3, item)
        part = tensors[rank]
        assert torch.equal(part[f"kinds.{item}.transposed"], values.T)
        assert torch.equal(part[f"kinds.{item}.half"], values.to(torch.bfloat16))
        assert torch.equal(part[f"kinds.{item}.bytes"], values.to(torch.uint8))
        assert part[f"kinds.{item}.number"] == item


def test_a_process_that_fails_makes_all_fail_with_its_message(processes: Any) -> None:
    _, _, texts = processes
    for text in texts:
        told = "process 1 failed while it worked on 1: ValueError: the matrix is haunted"
        assert text["failure"] == told


def test_sharded_training_is_refused_when_the_trainer_is_made(processes: Any) -> None:
    _, _, texts = processes
    for text in texts:
        assert "FSDP" in text["refusal"]
        assert "train with DDP" in text["refusal"]
