"""`analyze`, `compress` and `export_dense` for models that are already loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import transformers
from accelerate.utils import extract_model_from_parallel
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_rmt.compression.execution.agreement import agreed
from hf_rmt.compression.execution.rendezvous import collective
from hf_rmt.compression.model import analyze as analyze_module
from hf_rmt.compression.model import compress_layers
from hf_rmt.compression.refusals import (
    check_has_compressed,
    check_module,
    check_no_adapter,
    check_settings,
)
from hf_rmt.compression.targets.names import SelectionError
from hf_rmt.huggingface.conclude import adopt, conclude
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.quantizer import RMTQuantizer, layers_left, quantized_already
from hf_rmt.huggingface.source import CONFIG, check_entries, check_method, check_source
from hf_rmt.nn.counterparts import check_in_memory, densify
from hf_rmt.report import CompressionReport, SpectralReport
from hf_rmt.settings import CompressionSettings

ModelOrPath = nn.Module | str | PathLike[str]


def analyze(
    model_or_path: ModelOrPath,
    config: RMTConfig | None = None,
    *,
    target_modules: list[str] | str | None = None,
    method: str | None = None,
    **options: Any,
) -> SpectralReport:
    """Tell signal from noise in every attention and MLP weight of a model.

    The squared singular values of a weight, called its eigenvalues, tell the two apart; see
    `hf_rmt.spectra`. By default, a model of noise with two variances (the double bulk) is fitted to
    the eigenvalues.

    Args:
        model_or_path: A loaded model, a folder or a Hub id.
        config: A config for `compress`, in place of the keywords below.
        target_modules: The layers to analyse, as in `RMTConfig`.
        method: How signal and noise are told apart, as in `RMTConfig`; None for its default.
        **options: Options of the method, such as `rank` for `svd`, as in `RMTConfig`.

    Returns:
        A report on the spectra. It prints as a table and makes plots, JSON and CSV.

    Raises:
        TypeError: If the model is not a module, or `config` is not a config of this package.
        ValueError: If a target matches nothing, the method is unknown, an option does not belong to
            the method or is missing, or both a config and keywords are given.
        OSError: If the path or id cannot be loaded.
    """
    model = load_if_path(model_or_path)
    return analyze_module(model, config, target_modules=target_modules, method=method, **options)


@collective
def compress(
    model: nn.Module,
    config: RMTConfig | None = None,
    *,
    dry_run: bool = False,
    calibration: Iterable[Mapping[str, Any]] | None = None,
    size: float | None = None,
) -> CompressionReport:
    """Compress a loaded model in place.

    A transformers model can then be saved, pushed and reloaded like one that was compressed by
    `from_pretrained`. If nothing was replaced, it stays a plain model. In a module that is not from
    transformers, only the selected layers are replaced. A second call may compress other layers of
    a transformers model in another way. If torch.distributed runs, every process calls `compress`
    on its replica. The processes share the work and end with the same weights.

    Args:
        model: A model with its weights in memory.
        config: The method and its options. By default each weight is split into signal and noise
            (see `hf_rmt.spectra`), and the noise is stored in 8 bits.
        dry_run: Whether to return only the plan (ranks, kept shares of the squared norm, bits,
            latencies) and leave the model unchanged.
        calibration: Batches of the model's arguments, such as a few hundred tokenized sentences.
            They are read several times, so an iterator is first read into memory. With them, signal
            and noise are split so that the error of the layers' outputs on these batches is small,
            and biases are shifted to keep the mean outputs. Labels are not needed. Padding is left
            out.
            `method="ntk"` (for the neural tangent kernel) refits the last layer to its old outputs
            on these batches. The method also uses these outputs to decide whether activations
            become step functions.
        size: Only with calibration and `noise="drop"`: the share of the layers' parameters to
            keep, in (0, 1]. Each layer then gets its rank by what its directions (parts of rank
            one) are worth to the model's outputs, and not by the rule of the method.

    Returns:
        A report of what was done or, with `dry_run`, would be done. `model.compression_report`
        tells what was done in all calls.

    Raises:
        TypeError: If `model` is not a module, `config` not a config, or a batch not a mapping.
        ValueError: If nothing can be compressed, the model or one of the selected layers is
            quantized already, calibration holds no batch or is not finite, or options contradict
            each other.
    """
    check_module(model)
    check_no_adapter(model)
    check_settings(config)
    config = _own(config)

    def select() -> list[str]:
        check_compressible(model, config, again=True)
        return layers_left(model, config)

    asked = {"dry_run": dry_run, "calibration": calibration is not None, "size": size}
    names = agreed(model, select, config, asked)
    config.size, config.calibrated = size, calibration is not None
    return compress_layers(
        model,
        names,
        config,
        lambda report: conclude(model, config, report),
        dry_run=dry_run,
        calibration=calibration,
        size=size,
    )


def _own(config: CompressionSettings | None) -> RMTConfig:
    """A new `RMTConfig` with the values of `config`, so that the caller's object never changes.

    If `config` is None, the result has the default values.
    """
    if isinstance(config, RMTConfig):
        return config.replace()
    return RMTConfig() if config is None else RMTConfig(**config.to_dict())


def export_dense(model_or_path: ModelOrPath) -> nn.Module:
    """A dense (not compressed) copy of a compressed model, which loads without this package.

    Args:
        model_or_path: A compressed model, or the folder or Hub id of a saved one. A loaded model is
            not changed.

    Returns:
        The dense model. Its weights are the matrices by which the compressed layers multiply.

    Raises:
        ValueError: If the model has no compressed layer, has an offloaded layer, or has activations
            that became step functions, because a plain model has no step functions.
        TypeError: If `model_or_path` is neither a model nor a path.
    """
    model: Any = load_if_path(model_or_path)
    check_has_compressed(model)
    check_in_memory(model)
    dense: Any = copy.deepcopy(model) if model is model_or_path else model
    if isinstance(dense, PreTrainedModel):
        adopt(dense)
    return dense.dequantize() if isinstance(dense, PreTrainedModel) else densify(dense)


def load_if_path(model_or_path: ModelOrPath) -> Any:
    """Return a model as it is; load a folder or Hub id with the class it was saved from."""
    if isinstance(model_or_path, nn.Module):
        return model_or_path
    return loaded(model_class(model_or_path), model_or_path)


def unwrapped(model: Any) -> Any:
    """The model inside wrappers of torch such as `DataParallel`."""
    is_model = isinstance(model, nn.Module)
    return extract_model_from_parallel(model, keep_torch_compile=False) if is_model else model


def loaded(kind: Any, path: str | PathLike[str], **options: Any) -> Any:
    """Load a saved model with the class `kind`. If a file is wrong, the error names the path.

    Raises:
        ValueError: If config.json or the weights cannot be read, or do not fit each other, or the
            options select no layer.
        OSError: If a file is missing.
    """
    try:
        return kind.from_pretrained(path, dtype="auto", **options)
    except OSError:
        raise
    except (MemoryError, NotImplementedError, ImportError, SelectionError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be loaded; check that its config.json and weights belong together, or "
            f"download or save them again: {type(error).__name__}: {error}"
        ) from error


def model_class(path: str | PathLike[str]) -> Any:
    """The model class that a saved config names; `AutoModel` if it names none.

    Raises:
        OSError: If there is no such folder, and the Hub has no such model or cannot be reached.
        TypeError: If `path` is not a path.
    """
    return _class_of(_saved_config(path))


def _saved_config(path: str | PathLike[str]) -> Any:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"expected a loaded model, a folder or a Hub id, got {path!r}")
    check_source(path)
    try:
        check_entries(PreTrainedConfig.get_config_dict(path)[0])
        saved = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except OSError as error:
        if Path(path, CONFIG).is_file():
            raise _unreadable(path, error) from error
        raise OSError(
            f"{str(path)!r} is neither a folder with a model nor a Hub id that can be reached; "
            f"pass a local folder, or connect to the Hub. {error}"
        ) from error
    except (TypeError, LookupError, AttributeError, ValueError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{path} brings its own Python code, which hf_rmt does not run; load it with "
                "from_pretrained(..., trust_remote_code=True) and pass the loaded model"
            ) from error
        raise _unreadable(path, error) from error
    check_method(path, getattr(saved, "quantization_config", None))
    return saved


def _unreadable(path: str | PathLike[str], error: Exception) -> ValueError:
    return ValueError(f"{path}: {CONFIG} cannot be read; correct it, or download it again: {error}")


def _class_of(saved: Any) -> Any:
    named = saved.architectures
    name = named[0] if isinstance(named, list | tuple) and named else ""
    found = getattr(transformers, name, None) if isinstance(name, str) and name else None
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    return found if is_model else AutoModel


def check_compressible(model: nn.Module, config: RMTConfig, *, again: bool = False) -> None:
    """Refuse a model that cannot be compressed; `again` allows one that is partly compressed."""
    check_module(model)
    check_settings(config)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ValueError(
            "some weights of the model are offloaded or on the meta device, where there is "
            "nothing to compress; load the model without offloading"
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not (again and isinstance(quantizer, RMTQuantizer)):
        method = quantizer.quantization_config.quant_method
        raise quantized_already(type(model).__name__, method, "call model.dequantize() first")


def load_compressed(path: str | PathLike[str], config: RMTConfig) -> tuple[Any, CompressionReport]:
    """Load a model and compress each weight when it is read, to keep the dense model out of memory.

    Args:
        path: Folder or Hub id.
        config: The method and its options.

    Returns:
        The compressed model, and the report of what was done.

    Raises:
        ValueError: If the model is quantized already.
    """
    saved = _saved_config(path)
    if quantized := getattr(saved, "quantization_config", None):
        raise quantized_already(str(path), quantized.get("quant_method"), "export it dense first")
    model = loaded(_class_of(saved), path, quantization_config=config)
    return model, model.compression_report
