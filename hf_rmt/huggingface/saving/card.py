"""The model card (README.md) of a compressed model, with the picture on the card."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from transformers.models.auto import modeling_auto
from yaml import YAMLError

from hf_rmt.huggingface.compat import auto_mapping, source_of, task_of
from hf_rmt.nn import stored_bits
from hf_rmt.plan import SPIKED, TERNARY, CompressionPlan, LayerPlan
from hf_rmt.report import CardMetadata, CompressionReport, model_card
from hf_rmt.report.card.head import is_hub_id
from hf_rmt.report.figures.style import save_figure

logger = logging.getLogger(__name__)

PICTURE = "spectrum.png"
DRAWN = "_rmt_picture"
"""Name of the attribute in which a model keeps the picture for its card, and the report that was
drawn."""
PROCESSORS = {
    "tokenizer_config.json": "AutoTokenizer",
    "preprocessor_config.json": "AutoImageProcessor",
}
"""The Auto class of a tokenizer or an image processor, by the name of its file."""
NOT_ON_CARDS = {"layers", "digest", "files", "code"}

CARD_TAG = "hf_rmt"


def hub_id(name: str | None) -> str | None:
    """A model's name if it is a Hub id; None for a local path, which is private.

    The path of a folder that was deleted, or lies on another machine, is private as well.
    """
    return name if name and is_hub_id(name) and not Path(name).exists() else None


def picture_of(model: Any) -> bytes:
    """The picture on a model's card as the bytes of a PNG file; empty if there is no picture.

    If the report of the compression has spectra (the squared singular values of each weight), the
    picture shows them. If not, it shows what was done to each layer, from the first layer to the
    last. It is drawn once for each report, with matplotlib. If all compressed layers are ternary
    (entries -1, 0 and 1), there is nothing to draw.
    """
    report = getattr(model, "compression_report", None)
    known, content = model.__dict__.get(DRAWN, (None, b""))
    if known is None or known is not report:
        content = _drawn(model, report)
        model.__dict__[DRAWN] = (report, content)
    return content


def _drawn(model: Any, report: Any) -> bytes:
    if all(layer.kind == TERNARY for layer in _plan(model).compressed):
        return b""
    try:
        if report is not None and report.spectra is not None:
            figure = report.spectra.plot_grid()
        else:
            figure = CompressionReport(_plan(model)).plot_overview()
        with tempfile.TemporaryDirectory() as folder:
            save_figure(figure, Path(folder, PICTURE))
            return Path(folder, PICTURE).read_bytes()
    except ImportError:
        return b""
    except Exception as error:
        logger.warning(
            "the model card has no picture, because drawing failed: %s: %s",
            type(error).__name__,
            error,
        )
        return b""


def _plan(model: Any) -> CompressionPlan:
    return CompressionPlan.from_dict(model.hf_quantizer.quantization_config.layers)


def card_of(
    model: Any, folder: Path, *, repo_id: str | None = None, token: str | None = None
) -> ModelCard:
    """Generate the model card for a folder with saved weights.

    `repo_id` is the repository to which the model is pushed. Without it, no network is used.
    """
    config = model.hf_quantizer.quantization_config
    auto, about = auto_class(model), _source_card(source_of(model), token, online=bool(repo_id))
    report = getattr(model, "compression_report", None)
    plan = _plan_as_saved(model)
    text = model_card(
        plan,
        repo_id=repo_id,
        base_model=config.base_model,
        license=about.get("license"),
        metadata=_metadata(auto, about),
        processor=processor_in(folder),
        model_parameters=None if report is None else report.sizes.model_parameters,
        config={key: value for key, value in config.to_dict().items() if key not in NOT_ON_CARDS},
        picture=PICTURE if (folder / PICTURE).exists() else None,
        sizes=_sizes(plan, folder),
        auto_class=auto,
    )
    return ModelCard(text)


def processor_in(folder: Path) -> str | None:
    """Name of the Auto class of the tokenizer or image processor in a folder, or None."""
    for name, auto in PROCESSORS.items():
        if (folder / name).exists():
            return auto
    return None


def _metadata(auto: str, about: dict[str, Any]) -> CardMetadata:
    """The metadata of a model card: what the Hub reads, such as the task and the language.

    `about` is the metadata of the card of the original model, which is used if it is there. If it
    names no task, the task follows from `auto`, the name of an Auto class.
    """
    return CardMetadata(
        pipeline_tag=about.get("pipeline_tag") or task_of(auto),
        language=_several(about.get("language")),
        datasets=_several(about.get("datasets")),
        metrics=_several(about.get("metrics")),
    )


def _several(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(entry) for entry in value or ()]


def auto_class(model: Any) -> str:
    """Name of the Auto class that loads a model with its task head; `AutoModel` if none does."""
    found = [
        name
        for name in modeling_auto.__all__
        if name.startswith("AutoModel") and _loads(getattr(modeling_auto, name), model)
    ]
    # a model can be in the list for pretraining and in that of its task
    found.sort(key=lambda name: (name != "AutoModel", name == "AutoModelForPreTraining"))
    return found[0] if found else "AutoModel"


def _loads(auto: Any, model: Any) -> bool:
    classes = auto_mapping(auto).get(type(model.config), ())
    return type(model) in (classes if isinstance(classes, tuple) else (classes,))


def _plan_as_saved(model: Any) -> CompressionPlan:
    """The plan (what was done to each layer), with the sizes that fit the dtype of the model.

    The compression made the plan, but the user may have changed the dtype since then.
    """
    return CompressionPlan(tuple(_as_saved(model, layer) for layer in _plan(model)))


def _as_saved(model: Any, layer: LayerPlan) -> LayerPlan:
    if not layer.compressed:
        return layer
    module = model.get_submodule(layer.name)
    packed = layer.kind == TERNARY or layer.rounds
    part = module.bias if packed else module.weight  # packed weights have the same dtype always
    dtype = model.dtype if part is None else part.dtype
    bits = layer.bits
    if layer.kind == SPIKED:
        bits = stored_bits(layer.shape, layer.rank, layer.noise, dtype=dtype)
    return replace(layer, bits=bits, dense_bits=8 * dtype.itemsize * layer.entries)


def _sizes(plan: CompressionPlan, folder: Path) -> dict[str, int]:
    """The bytes of the saved weights, before (`before`) and after (`after`) the compression.

    File headers are not counted, as in the report, because the two files have different headers.
    """
    after = sum(_tensor_bytes(path) for path in folder.glob("*.safetensors"))
    saved = sum(layer.dense_bits - layer.bits for layer in plan.compressed) // 8
    return {"before": after + saved, "after": after}


def _tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file, which is its size without the header.

    The first 8 bytes of the file hold the length of the header; they are not counted either.
    """
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def foreign_card(repo_id: str, token: str | None) -> ModelCard | None:
    """The model card of a Hub repository; None if there is none or this package generated it."""
    try:
        card = ModelCard.load(repo_id, token=token)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return None if CARD_TAG in (card.data.get("tags") or []) else card


def _source_card(source: str, token: str | None, *, online: bool) -> dict[str, Any]:
    """The metadata of the card of the original model; empty if the card cannot be read.

    `source` is the folder or Hub id of that model. The Hub is asked only if `online` is set.
    """
    if not source:
        return {}
    try:
        path = Path(source, "README.md")
        if not path.is_file():
            if not online or Path(source).is_dir():
                return {}
            path = Path(hf_hub_download(source, "README.md", token=token))
        return dict(ModelCard.load(path).data.to_dict())
    except (OSError, ValueError, HfHubHTTPError, YAMLError):
        return {}
