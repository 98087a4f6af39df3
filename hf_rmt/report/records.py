"""Writes reports as strict JSON (without nan and infinity), and reads the spectra back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_rmt.spectra import DoubleBulk, MarchenkoPastur, Phase, PowerLawBulk, SpectrumFit
from hf_rmt.spectra.laws.law import BulkLaw


def plain(value: Any) -> Any:
    """Values for strict JSON: arrays become lists, nan becomes null, infinity becomes a string."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, str) else value


def json_text(payload: Any, *, indent: int | None = None) -> str:
    """The text of a value as strict JSON, after `plain` has converted the value."""
    return json.dumps(plain(payload), indent=indent, allow_nan=False)


def read(source: str | Path) -> Any:
    """The content of a JSON text, or of the file at a path.

    Args:
        source: The text, which starts with a brace or a bracket, or a path.

    Returns:
        Plain Python values, such as dicts and lists.

    Raises:
        ValueError: If the content is no JSON.
        FileNotFoundError: If there is no file at the path.
    """
    is_text = isinstance(source, str) and source.lstrip()[:1] in ("{", "[")
    text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        named = "the text" if is_text else str(source)
        raise ValueError(
            f"{named} is no JSON: {error}; pass a text or a file that was written as JSON"
        ) from error


def written(text: str, path: str | Path | None, *, kinds: tuple[str, ...] = ()) -> str:
    """Write a text to a file, with one newline at its end, and return the text unchanged.

    Args:
        text: The text.
        path: The file to write; None writes no file.
        kinds: The endings that the path may have, such as `.html`; empty if any ending is allowed.

    Raises:
        ValueError: If the path is empty, or has another ending.
        FileNotFoundError: If the folder does not exist.
    """
    if path is not None:
        target = place(path, kinds=kinds)
        if not target.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of {str(path)!r} does not exist; make it first")
        target.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    return text


def made_folder(path: str | Path) -> Path:
    """A folder to write to, made if it does not exist.

    Raises:
        ValueError: If the name is empty.
        NotADirectoryError: If the path is a file.
    """
    folder = place(path)
    if folder.is_file():
        raise NotADirectoryError(
            f"a report is saved in a folder, and {str(path)!r} is a file; pass the name of a folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def place(path: str | Path, *, kinds: tuple[str, ...] = ()) -> Path:
    """Check the path of a file or folder to write, and return it.

    An empty path is refused, because it would mean the working folder. If `kinds` is not empty, a
    path with another ending is refused too.
    """
    if path == "":
        raise ValueError(
            "a report is written to a named file or folder, got ''; write '.' for the folder you "
            "work in"
        )
    if kinds and Path(path).suffix.lower() not in kinds:
        raise ValueError(
            f"the name must end in {' or '.join(kinds)}, so that no file of another kind is "
            f"replaced, got {str(path)!r}; choose a name such as report{kinds[0]}"
        )
    return Path(path)


def fit_of(record: Mapping[str, Any]) -> SpectrumFit:
    """Restore a `SpectrumFit` from plain JSON values, exact to the last bit.

    Args:
        record: What `plain` returned for the `SpectrumFit`, a spectrum split into noise and signal.

    Returns:
        The `SpectrumFit`.

    Raises:
        ValueError: If `record` has a field that this version does not know.
    """
    if unknown := set(record) - {entry.name for entry in fields(SpectrumFit)}:
        raise ValueError(
            f"a fit has unknown fields {sorted(unknown)}; "
            "it was written by a newer hf_rmt, upgrade the package"
        )
    known: dict[str, Any] = {
        "shape": tuple(record["shape"]),
        "law": record["law"] and _law_of(record["law"]),
        "is_signal": np.array(record["is_signal"], dtype=bool),
        "phase": Phase(record["phase"]),
    }
    others = {key: _numbers(value) for key, value in record.items() if key not in known}
    return SpectrumFit(**known, **others)


def parameters_of(law: BulkLaw | None) -> tuple[float | None, float | None, float | None]:
    """The parameters of a law for tables: t, sigma_1^2 and sigma_2^2, with None for missing ones.

    The law is the density of eigenvalues that theory predicts for noise. In a `DoubleBulk`, a
    fraction t of the noise has variance sigma_1^2, and the rest has sigma_2^2. In a `PowerLawBulk`,
    t is missing, and the variances are the ends of a range. `MarchenkoPastur` has only sigma_1^2.
    """
    if isinstance(law, DoubleBulk):
        return law.mixing, *law.variances
    if isinstance(law, PowerLawBulk):
        return None, *law.variances
    return None, None if law is None else float(law.atoms[0]), None


def _law_of(law: Mapping[str, Any]) -> BulkLaw:
    """Restore a law (the density that theory predicts for noise) from its parameters.

    The names of the parameters show which law this is.
    """
    if "exponent" in law:
        return PowerLawBulk(**{**law, "variances": tuple(law["variances"])})
    if "mixing" in law:
        return DoubleBulk(**{**law, "variances": tuple(law["variances"])})
    return MarchenkoPastur(**law)


def _numbers(value: Any) -> Any:
    """Restore numbers from JSON: null becomes nan, "inf" becomes infinity, a list an array."""
    if isinstance(value, list):
        return np.array([_numbers(entry) for entry in value], dtype=float)
    return float("nan" if value is None else value) if value in (None, "inf", "-inf") else value
