"""What a saved or pushed model carries beside its tensors: alarm, remote code, card, picture."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from transformers.models.auto import modeling_auto

from hf_rmt.integrations.loader import ALARM
from hf_rmt.integrations.remote import REMOTE_CONFIG, REMOTE_FILE, remote_code
from hf_rmt.plan import TERNARY, CompressionPlan
from hf_rmt.report import CompressionReport, model_card
from hf_rmt.report.style import save_figure
from hf_rmt.settings import METHOD_TABLE, SPECTRAL

PICTURE = "spectrum.png"
PUSH_OPTIONS = ("private", "commit_message", "commit_description", "revision", "create_pr", "tags")
CARD_TAG = "hf_rmt"


def install_saving(model: Any) -> None:
    """Make `save_pretrained` and `push_to_hub` of one model write what loads everywhere."""
    # partials, unlike bound methods of a name that the class lacks, can be copied and pickled
    model.save_pretrained = partial(_save_pretrained, model)
    model.push_to_hub = partial(_push_to_hub, model)


def hub_id(name: str | None) -> str | None:
    """A model's name if it is a Hub id; a local path is nobody else's business."""
    return name if name and not Path(name).exists() else None


def _save_pretrained(
    model: Any,
    save_directory: str | Path,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """`PreTrainedModel.save_pretrained`, and the files that make the folder load anywhere."""
    folder = Path(save_directory)
    if folder.is_file():
        raise NotADirectoryError(f"save_directory must be a folder, {folder} is a file")
    repo_id = kwargs.pop("repo_id", folder.name)
    push = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
    type(model).save_pretrained(model, save_directory, is_main_process=is_main_process, **kwargs)
    if is_main_process:
        _write_companions(model, folder)
        if push_to_hub:
            _push_to_hub(model, repo_id, token=kwargs.get("token"), **push)


def _push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
    **kwargs: Any,
) -> Any:
    """`PreTrainedModel.push_to_hub` with the generated card in place of an empty template."""
    from transformers.utils.hub import hf_api

    repo_id = hf_api().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        card: Any = _foreign_card(repo_id, token)
        card = card or _card(model, Path(folder), repo_id=repo_id, token=token)
        card.data["tags"] = sorted({*(card.data.get("tags") or []), *(tags or [])})
        card.save(Path(folder, "README.md"))
        return model._upload_modified_files(
            folder, repo_id, files_timestamps={}, token=token, **kwargs
        )


def _write_companions(model: Any, folder: Path) -> None:
    """Alarm and remote code into the folder, and a card unless the user has written one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {**(config.get("auto_map") or {}), "AutoConfig": REMOTE_CONFIG}
    if not config.get("output_attentions"):  # those models refuse any but eager attention
        config["attn_implementation"] = ALARM
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / REMOTE_FILE).write_text(remote_code(), encoding="utf-8")
    readme = folder / "README.md"
    if not readme.exists() or CARD_TAG in (ModelCard.load(readme).data.get("tags") or []):
        _draw(model, folder / PICTURE)
        _card(model, folder).save(readme)


def _draw(model: Any, path: Path) -> None:
    """Spectra if the model was compressed just now, else the plan over depth; needs matplotlib.

    Ternary layers alone have nothing to draw.
    """
    path.unlink(missing_ok=True)
    if all(layer.kind == TERNARY for layer in _plan(model).compressed):
        return
    report = model.hf_quantizer.report
    try:
        if report is not None and report.spectra is not None:
            figure = report.spectra.plot_grid()
        else:
            figure = CompressionReport(_plan(model)).plot_overview()
    except ImportError:
        return
    save_figure(figure, path)


def _plan(model: Any) -> CompressionPlan:
    return CompressionPlan.from_dict(model.hf_quantizer.quantization_config.layers)


def _card(
    model: Any, folder: Path, *, repo_id: str | None = None, token: str | None = None
) -> ModelCard:
    """The generated card of a folder with saved weights; the network is asked only for a push."""
    config = model.hf_quantizer.quantization_config
    source = model.config._name_or_path
    text = model_card(
        _plan(model),
        repo_id=repo_id,
        base_model=config.base_model,
        license=_license(source, token, online=repo_id is not None),
        config=_told(config.to_dict()),
        picture=PICTURE if (folder / PICTURE).exists() else None,
        sizes=_sizes(_plan(model), folder),
        auto_class=auto_class(model),
    )
    return ModelCard(text)


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that the method reads."""
    row = METHOD_TABLE[config["method"]]
    owned = {key for other in METHOD_TABLE.values() for key in other.only}
    silent = {*SPECTRAL, "min_size"} if row.decide else owned - set(row.only)
    return {key: value for key, value in config.items() if key not in {*silent, "layers"}}


def auto_class(model: Any) -> str:
    """The Auto class that loads a model with the head it has; `AutoModel` for want of one."""
    found = [
        name
        for name in modeling_auto.__all__
        if name.startswith("AutoModel") and _loads(getattr(modeling_auto, name), model)
    ]
    # a model is in the list of pretraining beside that of its task
    found.sort(key=lambda name: (name != "AutoModel", name == "AutoModelForPreTraining"))
    return found[0] if found else "AutoModel"


def _loads(auto: Any, model: Any) -> bool:
    classes = auto._model_mapping.get(type(model.config), ())
    return type(model) in (classes if isinstance(classes, tuple) else (classes,))


def _sizes(plan: CompressionPlan, folder: Path) -> dict[str, int]:
    """Bytes of the saved weights, and what they would be with dense layers."""
    after = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    saved = sum(layer.dense_bits - layer.bits for layer in plan.compressed) // 8
    return {"before": after + saved, "after": after}


def _foreign_card(repo_id: str, token: str | None) -> ModelCard | None:
    """The repository's card if a person wrote it."""
    try:
        card = ModelCard.load(repo_id, token=token)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return None if CARD_TAG in (card.data.get("tags") or []) else card


def _license(source: str | None, token: str | None, *, online: bool) -> str | None:
    """Licence that the card of the model's source states, if it can be read."""
    if not source:
        return None
    try:
        path = Path(source, "README.md")
        if not path.is_file():
            if not online or Path(source).is_dir():
                return None
            path = Path(hf_hub_download(source, "README.md", token=token))
        return ModelCard.load(path).data.get("license")
    except (OSError, ValueError, HfHubHTTPError):
        return None
