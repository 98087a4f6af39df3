import json
from typing import Any

import numpy as np
import pytest
import torch

from hf_rmt.compression.directions import recovers_spikes, removal, stores_all_spikes
from hf_rmt.settings import CompressionSettings
from hf_rmt.settings.compression_settings import all_options

NAMED = ("target_modules", "modules_to_not_convert")
EMPTY = [(field, names) for field in NAMED for names in ([""], ["query", ""], [" "], ("",))]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("method", "magic", ["method", "pdb", "'magic'"]),
        ("noise", "int7", ["noise", "int4", "'int7'"]),
        ("noise_removal", 1.5, ["noise_removal", "[0, 1]", "1.5"]),
        ("min_size", 0, ["min_size", "1", "0"]),
        ("max_rank", -1, ["max_rank", "0", "-1"]),
        ("seed", -3, ["seed", "-3"]),
        ("target_modules", [], ["target_modules", "empty"]),
        *((field, names, [field, "empty name", "take it out", "None"]) for field, names in EMPTY),
        ("rank", 4, ["rank=4", "'pdb'", "None", "svd, slr"]),
        ("energy", 0.5, ["energy=0.5", "'pdb'", "svd"]),
        ("sparsity", -1, ["sparsity", "[0, 1)", "-1"]),
        ("sparsity", 1, ["sparsity", "[0, 1)", "1"]),
        ("energy", 0, ["energy", "(0, 1]", "0"]),
        ("noise_removal", float("nan"), ["noise_removal", "[0, 1]", "nan"]),
        ("noise_removal", {}, ["noise_removal", "no layer", "1.0"]),
        ("noise_removal", {"a.b": 2.0}, ["noise_removal['a.b']", "[0, 1]", "2.0"]),
    ],
)
def test_bad_value_is_named_with_its_rule(field: str, value: object, words: list[str]) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        CompressionSettings(**{field: value})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_removal", "all"),
        ("noise_removal", True),
        ("max_rank", 2.5),
        ("rank", 0.5),
        ("energy", "all"),
        ("fraction", True),
        ("noise_removal", {"a.b": "all"}),
        ("min_size", True),
        ("recover_spikes", 1),
        ("noise_removal", {1: 0.2}),
        ("rank", np.float64(4)),
        ("target_modules", 7),
        ("modules_to_not_convert", "classifier"),
    ],
)
def test_wrong_type_is_a_type_error(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=field):
        CompressionSettings(**{field: value})


def test_removal_fraction_contradicts_stored_noise() -> None:
    with pytest.raises(ValueError, match="noise='drop'"):
        CompressionSettings(noise="int8", noise_removal=0.5)
    assert CompressionSettings(noise="drop", noise_removal=0.5).noise_removal == 0.5


@pytest.mark.parametrize(
    ("noise", "asked", "expected"),
    [("drop", None, True), ("int8", None, False), ("drop", False, False), ("keep", True, True)],
)
def test_spikes_are_recovered_by_default_only_when_noise_is_dropped(
    noise: str, asked: bool | None, expected: bool
) -> None:
    assert recovers_spikes(CompressionSettings(noise=noise, recover_spikes=asked)) is expected


def test_paying_spikes_contradict_noise_without_codes() -> None:
    with pytest.raises(ValueError, match="stored_spikes='paying'"):
        CompressionSettings(noise="drop", stored_spikes="paying")


@pytest.mark.parametrize(
    ("noise", "asked", "expected"),
    [("int8", None, False), ("keep", None, True), ("ternary", "all", True), ("drop", None, True)],
)
def test_packed_noise_stores_paying_spikes_by_default(
    noise: str, asked: str | None, expected: bool
) -> None:
    assert stores_all_spikes(CompressionSettings(noise=noise, stored_spikes=asked)) is expected


KEEPING = {"svd": {"rank": 3}, "slr": {"rank": 3}, "magnitude": {"fraction": 0.5}}


@pytest.mark.parametrize(
    ("method", "kept", "words"),
    [
        ("svd", {}, ["rank or energy or fraction", "exactly one", "got none", "set one"]),
        ("svd", {"rank": 3, "energy": 0.5}, ["exactly one", "rank and energy"]),
        ("svd", {"rank": 0}, ["rank", "at least 1", "got 0"]),
        ("svd", {"energy": 0.0}, ["energy", "(0, 1]", "got 0.0"]),
        ("svd", {"fraction": 1.1}, ["fraction", "(0, 1]", "got 1.1"]),
        ("slr", {"energy": 0.5}, ["energy=0.5", "rank, fraction", "choose one of the methods svd"]),
        ("magnitude", {"rank": 3}, ["rank=3", "takes fraction", "svd, slr"]),
        ("uniform", {}, ["fraction", "got none"]),
    ],
)
def test_what_is_kept_is_said_as_the_method_takes_it(
    method: str, kept: dict[str, float], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=next(iter(kept), "fraction")) as caught:
        CompressionSettings(method=method, noise="drop", **kept)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("method", ["slr", "magnitude"])
def test_methods_that_drop_the_rest_store_no_noise(method: str) -> None:
    with pytest.raises(ValueError, match="set noise='drop'"):
        CompressionSettings(method=method, **KEEPING[method])
    settings = CompressionSettings(method=method, noise="drop", **KEEPING[method])
    assert not recovers_spikes(settings)
    for share in (0.5, {"a": 0.5}):
        with pytest.raises(ValueError, match="use rank or fraction"):
            CompressionSettings(method=method, noise="drop", noise_removal=share, **KEEPING[method])
    CompressionSettings(method=method, noise="drop", noise_removal={"a": 1.0}, **KEEPING[method])


def test_directions_that_were_asked_for_are_all_stored_and_none_is_recovered() -> None:
    settings = CompressionSettings(method="svd", rank=3)
    assert (settings.noise, stores_all_spikes(settings)) == ("int8", True)
    assert not stores_all_spikes(CompressionSettings(method="svd", rank=3, stored_spikes="paying"))
    assert not recovers_spikes(CompressionSettings(method="svd", rank=3, noise="drop"))
    with pytest.raises(ValueError, match="needs a method that fits a law"):
        CompressionSettings(method="svd", rank=3, recover_spikes=True)
    assert recovers_spikes(CompressionSettings(method="bema", noise="drop"))


def test_each_layer_may_have_a_removal_of_its_own() -> None:
    settings = CompressionSettings(noise="drop", noise_removal={"a": 0.5, "b": 1})
    assert [removal(settings, name) for name in ("a", "b", "c")] == [0.5, 1, None]
    assert removal(CompressionSettings(noise="drop", noise_removal=0.3), "any") == 0.3
    with pytest.raises(ValueError, match="noise='drop'"):
        CompressionSettings(noise_removal={"a": 0.5})


@pytest.mark.parametrize(
    "given",
    [
        {"method": "svd", "rank": np.int64(4), "min_size": np.int32(8), "seed": np.uint8(3)},
        {"method": "svd", "energy": np.float32(0.5), "max_rank": np.int64(4)},
        {"noise": "drop", "noise_removal": np.float32(0.5)},
        {"noise": "drop", "noise_removal": {"a": np.float32(0.5)}},
        {"method": "ntk", "sparsity": np.float32(0.5)},
        {"target_modules": ("query", "key"), "modules_to_not_convert": ("key",)},
    ],
)
def test_numbers_of_numpy_are_taken_and_kept_as_plain_ones(given: dict[str, Any]) -> None:
    kept = CompressionSettings(**given).to_dict()
    assert CompressionSettings(**json.loads(json.dumps(kept))) == CompressionSettings(**given)
    for key, value in given.items():
        plain = {int: np.integer, float: np.floating, list: tuple}.get(type(kept[key]))
        assert plain is None or isinstance(value, plain)


NUMERIC = [option for option in all_options().values() if option.parse in (int, float)]
WHOLE = [np.int64, np.uint8, np.array, torch.tensor]
REAL = [np.float16, np.float32, np.float64, np.array, torch.tensor]


@pytest.mark.parametrize("option", NUMERIC, ids=lambda option: option.name)
def test_numbers_of_numpy_and_torch_are_numbers_and_flags_are_none(option: Any) -> None:
    plain = 3 if option.parse is int else 0.5
    for made in WHOLE if option.parse is int else REAL:
        value = option.checked(made(plain))
        assert (type(value), value) == (option.parse, plain)
    for flag in (True, np.bool_(True), np.array(True), torch.tensor(True)):
        with pytest.raises(TypeError, match=option.name):
            option.checked(flag)
    for wrong in (np.array([plain]), torch.tensor([plain]), str(plain), 1j, np.complex64(1)):
        with pytest.raises(TypeError, match=option.name):
            option.checked(wrong)
