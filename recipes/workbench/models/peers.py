"""Compressed models of other libraries: torch, torchao, bitsandbytes, quanto and onnxruntime."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workbench.timing import missing

import torch
import transformers
from torch import Tensor, nn

Variants = dict[str, Any]


def peers(
    model: nn.Module, compressed: nn.Module, batch: Mapping[str, Tensor], variants: Variants
) -> Iterator[str]:
    """Add the models of installed libraries, and yield a note for each one that does not work.

    Args:
        model: The dense model on its device; it is not changed.
        compressed: The same model, compressed by this package.
        batch: Arguments of the model, with at least two rows, for libraries that trace the model.
        variants: Models by label; the new models are added here.
    """
    if next(model.parameters()).device.type == "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dynamic = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
        variants["torch dynamic"] = dynamic
    for package, add in (
        ("torchao", lambda: _torchao(model, variants)),
        ("bitsandbytes", lambda: _bitsandbytes(model, variants)),
        ("optimum", lambda: _quanto(model, variants)),
        ("onnxruntime", lambda: _onnxruntime(model, compressed, batch, variants)),
    ):
        if missing(package):
            yield f"{package} not installed"
        else:
            yield from add()


def _torchao(model: nn.Module, variants: Variants) -> Iterator[str]:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    for config in (Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig):
        name = f"torchao {config.__name__.removesuffix('Config')}"
        variants[name] = copy.deepcopy(model)
        quantize_(variants[name], config())
    yield from ()


def _bitsandbytes(model: nn.Module, variants: Variants) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        for name, options in (
            ("bitsandbytes int8", {"load_in_8bit": True}),
            ("bitsandbytes nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ):
            config = transformers.BitsAndBytesConfig(**options)
            try:
                variants[name] = type(model).from_pretrained(folder, quantization_config=config)
            except (ImportError, RuntimeError, ValueError) as error:
                yield f"{name} does not load here: {str(error).splitlines()[0]}"


def _quanto(model: nn.Module, variants: Variants) -> Iterator[str]:
    from optimum.quanto import freeze, qint4, qint8, quantize

    for name, kind in (("quanto int8", qint8), ("quanto int4", qint4)):
        made = copy.deepcopy(model)
        try:
            quantize(made, weights=kind)
            freeze(made)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            yield f"{name} does not work here: {str(error).splitlines()[0]}"
        else:
            variants[name] = made


def _onnxruntime(
    model: nn.Module, compressed: nn.Module, batch: Mapping[str, Tensor], variants: Variants
) -> Iterator[str]:
    """Add three ONNX files: the dense model, the dense model in dynamic int8, and our model."""
    if missing("onnxscript"):
        yield "onnxscript, which writes ONNX files, is not installed"
        return
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, source in (("onnxruntime", model), ("onnxruntime, ours", compressed)):
            path = folder / f"{label}.onnx"
            _export(source, batch, path)
            variants[label] = OnnxModel(path)
        quantize_dynamic(folder / "onnxruntime.onnx", folder / "dynamic.onnx")
        variants["onnxruntime dynamic int8"] = OnnxModel(folder / "dynamic.onnx")


def _export(model: nn.Module, batch: Mapping[str, Tensor], path: Path) -> None:
    """Write a model that takes every batch size, and texts of up to 512 tokens."""
    model = copy.deepcopy(model).cpu()
    model.set_attn_implementation("eager")  # type: ignore[operator]
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", max=512)
    sizes = {
        key: {0: rows} if value.is_floating_point() else {0: rows, 1: length}
        for key, value in batch.items()
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model, kwargs=dict(batch), dynamic_shapes=sizes, dynamo=True, verbose=False
        )
    program.save(path)


class OnnxModel:
    """An ONNX file that is called like its original model, on one thread of the CPU.

    Args:
        path: The file, which is not needed afterwards.

    Attributes:
        megabytes: Size of the file.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.megabytes = os.path.getsize(path) / 1e6

    def __call__(self, **batch: Tensor) -> SimpleNamespace:
        """The last hidden states."""
        hidden = self.session.run(None, {name: batch[name].numpy() for name in self.inputs})[0]
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))
