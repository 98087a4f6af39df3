"""Checks the arguments of `RMTCallback` when it is made and when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rmt.checks import check_choice, check_number
from hf_rmt.compression.methods.spectral import SpectralMethod
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.training.choice import Size
from hf_rmt.huggingface.training.dose import check_dose
from hf_rmt.settings import method_of

TARGETS = ("weights", "update")
FREE = ("schedule", "log")
"""Arguments of the callback that may change when a run is resumed."""


def check_arguments(config: Any, schedule: Any, size: Any, log: Any) -> None:
    """Refuse wrong types and values of the arguments of `RMTCallback`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a value is not allowed.
    """
    if config is not None and not isinstance(config, RMTConfig | Mapping):
        raise TypeError(f"config must be an RMTConfig, got {config!r}")
    if isinstance(schedule, bool) or not isinstance(schedule, str | int | None):
        raise TypeError(f"schedule must be 'epoch', 'end' or a number of steps, got {schedule!r}")
    wrong = schedule < 1 if isinstance(schedule, int) else schedule not in ("epoch", "end", None)
    if wrong:
        raise ValueError(
            f"schedule must be 'epoch', 'end' or at least 1 step, got {schedule!r}; "
            "pass schedule='end' to filter once"
        )
    if isinstance(size, str):
        check_choice("size, if it is not a number,", size, ("auto",))
    elif size is not None:
        check_number("size", size, "(0")
    if log not in (True, False, "layers"):
        raise ValueError(f"log must be True, False or 'layers', got {log!r}")


def resolved_schedule(
    config: RMTConfig, target: str, schedule: Any, size: Size, anneal: Any
) -> Any:
    """Find when `RMTCallback` drops the noise; None if it scales the noise down slowly.

    `RMTCallback` explains the arguments, and what noise is.

    Returns:
        A value of the argument `schedule`, such as `"epoch"` (after each epoch), or None.

    Raises:
        ValueError: If `size` or `anneal` is given with a schedule, with `target="update"`, or with
            a config whose noise cannot be scaled down step by step.
    """
    method = method_of(config)
    directional = isinstance(method, SpectralMethod) and method.stores_noise
    drops = directional and config.noise == "drop" and not config.recover_spikes
    told = {"size": size, "anneal": anneal}
    given = [f"{key}={value!r}" for key, value in told.items() if value is not None]
    if schedule is None and target == "weights" and drops:
        return None
    if given:
        reasons = {
            f"schedule={schedule!r}, which filters at once": schedule is not None,
            "target='update', which is filtered at once": target == "update",
            f"noise={config.noise!r} by method={config.method!r}": True,
        }
        reason = next(key for key, holds in reasons.items() if holds)
        raise ValueError(
            f"{' and '.join(given)} cannot be used with {reason}: size and anneal are only for "
            "noise that is scaled down slowly; leave them out, or pass RMTConfig(noise='drop') "
            "without target and schedule"
        )
    return "epoch" if schedule is None else schedule


def dosed_schedule(target: str, schedule: Any, dose: Any) -> Any:
    """Return `schedule`, or `"end"` if a dose is given. The arguments are those of `RMTCallback`.

    A dose says how much of the update is kept. The update is what training added to the weights.

    Raises:
        ValueError: If a dose is given with another schedule, or with another target than
            `"update"`.
    """
    check_dose(dose)
    if dose is None:
        return schedule
    if target != "update" or schedule not in (None, "end"):
        raise ValueError(
            f"dose={dose!r} says what is kept of an update when training ends, got "
            f"target={target!r} and schedule={schedule!r}; pass target='update' and no schedule"
        )
    return "end"


def filter_config(config: RMTConfig | Mapping[str, Any] | None) -> Any:
    """The config with which `RMTCallback` filters noise.

    Args:
        config: A config; or a mapping with its fields, as a checkpoint stores it; or None for the
            default of the callback, `RMTConfig(noise="drop")`.

    Raises:
        ValueError: If `RMTCallback` cannot filter with the method of the config.
    """
    if config is None:
        return RMTConfig(noise="drop")
    made: Any = RMTConfig.from_dict(config) if isinstance(config, Mapping) else config
    if why := method_of(made).why_no_filter():
        raise ValueError(why)
    return made


def check_same(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings than those of its checkpoint.

    Args:
        own: The arguments of the callback, in the form in which a checkpoint stores them.
        saved: The arguments that the checkpoint stores.

    Raises:
        ValueError: If an argument that must stay the same differs.
    """
    ours, theirs = _flat(own), _flat(saved)
    for key in (key for key in ours if ours[key] != theirs.get(key)):
        raise ValueError(
            f"{key} must stay {theirs.get(key)!r}, the value of the run that is resumed, got "
            f"{ours[key]!r}; pass that value, or start a new run"
        )


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Collect in one dict all arguments of the callback that a resumed run must not change.

    The fields of the config are entries of this dict, too, under their own names.
    """
    others = {key: arguments[key] for key in arguments if key not in ("config", *FREE)}
    kind = {"kind": "annealed" if arguments["schedule"] is None else "at once"}
    return {**filter_config(arguments["config"]).to_dict(), **kind, **others}
