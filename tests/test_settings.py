import pytest

from hf_rmt.settings import CompressionSettings


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
        ("min_size", True),
        ("recover_spikes", 1),
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
    assert CompressionSettings(noise=noise, recover_spikes=asked).recovers_spikes is expected


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
    assert CompressionSettings(noise=noise, stored_spikes=asked).stores_all_spikes is expected
