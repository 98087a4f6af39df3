"""What is tried with each family, step by step, and what came of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hf_rmt
from hf_rmt import RMTConfig
from hf_rmt.nn.counterparts import compressed_layers
from tests.families.family import Family

NOISES = ("int8", "drop")
TOLERANCE = 1e-6
"""Of outputs before saving and after, relative to their largest entry."""
STEPS = ("memory", "load", "reload", "dequantize", "train", "lora", "generate")
REFUSED, WORKS, NOT_TRIED = "refused", "yes", "-"


@dataclass
class Result:
    """What came of a family.

    Attributes:
        family: Its entry.
        share: Share of all parameters of the model that lie in compressed layers.
        kept: Layers left dense on purpose, by cause.
        outcome: By step: `yes`, `refused`, `-` for a step that makes no sense, or the error.
        why: The text of a refusal.
    """

    family: Family
    share: float = 0.0
    kept: dict[str, int] = field(default_factory=dict)
    outcome: dict[str, str] = field(default_factory=lambda: dict.fromkeys(STEPS, NOT_TRIED))
    why: str = ""

    @property
    def works(self) -> bool:
        """Whether every step works, makes no sense, or is refused with its reason."""
        return set(self.outcome.values()) <= {WORKS, NOT_TRIED, REFUSED}


@torch.no_grad()
def outputs(model: Any, family: Family) -> torch.Tensor:
    """All floating outputs of a forward in one row."""
    torch.manual_seed(0)
    found = model.eval()(**family.inputs(), **_fixed(family)).to_tuple()
    return torch.cat([part.flatten().float() for part in tensors(found)])


def _fixed(family: Family) -> dict[str, Any]:
    """What makes a forward that draws numbers repeatable."""
    if family.name == "ViTMAEForPreTraining":
        return {"noise": torch.arange(4.0).expand(2, 4)}
    return {}


def tensors(found: Any) -> list[torch.Tensor]:
    """The floating tensors of a model's output."""
    if isinstance(found, torch.Tensor):
        return [found] if found.is_floating_point() else []
    if isinstance(found, tuple | list):
        return [part for each in found for part in tensors(each)]
    return tensors(found.to_tuple()) if hasattr(found, "to_tuple") else []


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


class Trial:
    """One family, its dense model saved in a folder."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder = family, folder
        dense = family.model()
        self.kind = type(dense)
        self.before = outputs(dense, family)
        dense.save_pretrained(folder / "dense")

    def loaded(self, noise: str = "int8") -> Any:
        """The model compressed while it loads."""
        config = RMTConfig(noise=noise)
        return self.kind.from_pretrained(self.folder / "dense", quantization_config=config)

    def memory(self) -> Any:
        """Compressed in memory with both stores; int8 stays near to the dense outputs."""
        for noise in NOISES:
            model = self.family.model()
            hf_rmt.compress(model, RMTConfig(noise=noise))
            found = outputs(model, self.family)
            assert torch.isfinite(found).all()
            if noise == "int8":
                assert gap(found, self.before) < 0.2, gap(found, self.before)
            self._same_again(model, noise)
        return model

    def load(self) -> Any:
        """Compressed while loading: the same state as in memory."""
        model, other = self.loaded(), self.family.model()
        hf_rmt.compress(other, RMTConfig())
        state, expected = model.state_dict(), other.state_dict()
        assert state.keys() == expected.keys(), sorted(state.keys() ^ expected.keys())[:3]
        for key, value in expected.items():
            assert torch.equal(state[key], value), key
        return model

    def reload(self) -> None:
        """What was compressed while loading, saved and loaded again."""
        for noise in NOISES:
            self._same_again(self.loaded(noise), noise)

    def dequantize(self) -> None:
        """Dense again: no compressed layer is left and the outputs stay."""
        model = self.loaded()
        before = outputs(model, self.family)
        dense = model.dequantize()
        assert not compressed_layers(dense)
        assert gap(outputs(dense, self.family), before) < 1e-4

    def train(self) -> None:
        """One step changes the factors and the outputs, and the noise not at all."""
        model = self.loaded()
        buffers = {name: value.clone() for name, value in model.named_buffers() if "noise" in name}
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        model.train()
        parts = tensors(model(**self.family.inputs(), **_fixed(self.family)).to_tuple())
        sum(part.float().square().mean() for part in parts if part.requires_grad).backward()
        grads = [layer.weight.grad for layer in compressed_layers(model).values() if layer.rank]
        optimizer.step()
        assert any(parameter.grad is not None for parameter in model.parameters())
        assert not grads or any(grad is not None for grad in grads)
        assert all(torch.equal(dict(model.named_buffers())[key], buffers[key]) for key in buffers)

    def lora(self) -> None:
        """Adapters where `lora_targets` says, and a forward through them."""
        from peft import LoraConfig

        model = self.loaded()
        before = outputs(model, self.family)
        try:
            targets = hf_rmt.lora_targets(model)
        except ValueError:  # no layer with a signal: the names of layers serve
            targets = {"target_modules": list(compressed_layers(model))}
        model.add_adapter(LoraConfig(r=2, **targets))
        assert gap(outputs(model, self.family), before) < TOLERANCE
        assert any("lora_" in name for name, _ in model.named_parameters())

    def generate(self) -> None:
        """A few tokens."""
        inputs = self.family.inputs()
        inputs.pop("decoder_input_ids", None)
        found = self.loaded().eval().generate(**inputs, max_new_tokens=3, do_sample=False)
        assert found.shape[0] == 2

    def _same_again(self, model: Any, noise: str) -> None:
        folder, before = self.folder / noise, outputs(model, self.family)
        model.save_pretrained(folder)
        again = self.kind.from_pretrained(folder)
        state, expected = again.state_dict(), model.state_dict()
        assert state.keys() == expected.keys(), sorted(state.keys() ^ expected.keys())[:3]
        for key, value in expected.items():
            assert torch.equal(state[key], value), key
        assert gap(outputs(again, self.family), before) <= TOLERANCE


def tried(family: Family) -> Result:
    """Try all steps with a family."""
    result = Result(family)
    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = Trial(family, Path(folder))
        except Exception as error:  # the class itself does not run here
            result.outcome = dict.fromkeys(STEPS, f"dense: {_said(error)}")
            return result
        if _covers(result):
            for step in STEPS:
                if step != "generate" or family.generates:
                    result.outcome[step] = _outcome(getattr(trial, step))
    return result


def _covers(result: Result) -> bool:
    """Whether anything can be compressed, noting what; if not, one clear text serves all steps."""
    model = result.family.model()
    try:
        report = hf_rmt.compress(model, RMTConfig())
    except ValueError as error:
        result.outcome, result.why = dict.fromkeys(STEPS, REFUSED), str(error)
        return False
    result.share = report.covered or 0.0
    causes = Counter(str(layer.cause) for layer in report.plan if not layer.compressed)
    result.kept = dict(causes)
    return True


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _outcome(step: Callable[[], Any]) -> str:
    try:
        step()
    except Exception as error:  # whatever goes wrong is what the table shows
        return _said(error)
    return WORKS
