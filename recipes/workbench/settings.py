"""Makes sure that all results in a folder were made with the same settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.writing import write_json

FREE = {
    *("task", "seeds", "methods", "fractions"),
    *("output_dir", "push_to_hub", "data_dir", "use_cpu"),
}
"""Options that may differ between runs that write to the same folder."""


def check_settings(folder: Path, arguments: Any) -> None:
    """Refuse a folder with results of other settings, because new results would mix with them."""
    ours = {key: value for key, value in asdict(arguments).items() if key not in FREE}
    file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_json(file, ours)
        return
    theirs = {key: it for key, it in json.loads(file.read_text()).items() if key not in FREE}
    if theirs != ours:
        changed = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        raise SystemExit(
            f"{folder} holds results with another {', '.join(sorted(changed))}; "
            "pass another --output_dir"
        )
