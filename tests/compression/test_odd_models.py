"""Models whose layers are more, or less, than one parameter in one place, and odd modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.testing._internal.two_tensor import TwoTensor

from hf_rmt.compression.model import analyze, compress
from hf_rmt.nn import SpikedLinear
from hf_rmt.plan import Cause
from hf_rmt.settings import CompressionSettings

SVD = CompressionSettings(method="svd", rank=4)


class Net(nn.Module):
    """Three linears."""

    def __init__(self, kind: Any = nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(48, 48), kind(48, 48), nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def batch() -> torch.Tensor:
    return torch.randn(6, 48, generator=torch.Generator().manual_seed(1))


MADE_ANEW: dict[str, Callable[[Any], Any]] = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


def changed(way: str) -> Net:
    model = Net()
    MADE_ANEW[way](model.first)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", MADE_ANEW)
def test_a_weight_that_is_made_anew_stays_dense(way: str) -> None:
    model = changed(way)
    report = compress(model, SVD)
    assert type(model.first) is nn.Linear
    assert isinstance(model.second, SpikedLinear)
    assert {plan.name: plan.cause for plan in report.plan}["first"] == Cause.MADE_ANEW
    model(batch()).sum().backward()
    with pytest.raises(
        ValueError,
        match=r"'first', but its weight or its bias is computed.*prune\.remove",
    ):
        compress(changed(way), SVD.replace(target_modules=["first"]))


def test_a_layer_that_stands_in_two_places_stays_dense() -> None:
    layer = nn.Linear(48, 48)
    model = nn.Sequential(layer, layer, nn.Linear(48, 48), nn.Linear(48, 4))
    compress(model, SVD)
    assert model[0] is model[1] is layer
    assert isinstance(model[2], SpikedLinear)
    with pytest.raises(ValueError, match="is tied to another layer"):
        compress(nn.Sequential(layer, layer, nn.Linear(48, 4)), SVD)


def test_a_layer_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'second' is a LazyLinear.*run the model on one batch"):
        compress(Net(lambda _, outputs: nn.LazyLinear(outputs)), SVD)


def test_what_is_no_model_is_named_by_its_class_alone() -> None:
    with pytest.raises(TypeError) as error:
        compress(Net().state_dict(), SVD)  # type: ignore[arg-type]
    assert str(error.value) == "hf_rmt needs a loaded model, got OrderedDict; load it first"


@pytest.mark.parametrize(
    ("noise", "calibrated"), [("keep", False), ("int8", False), ("int8", True)]
)
def test_autocast_does_not_reach_the_weights(noise: str, calibrated: bool) -> None:
    settings = SVD.replace(noise=noise)
    told: Any = {"calibration": [{"x": batch()}]} if calibrated else {}
    plain, within = Net(), Net()
    compress(plain, settings, **told)
    with torch.autocast("cpu", torch.bfloat16):
        compress(within, settings, **told)
        report = analyze(Net(), SVD.replace(noise="drop"))
        assert torch.is_autocast_enabled("cpu")
    states = zip(plain.state_dict().values(), within.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in states)
    assert report.to_json() == analyze(Net(), SVD.replace(noise="drop")).to_json()


def test_what_is_compressed_in_inference_mode_can_be_trained() -> None:
    model, other = Net(), Net()
    with torch.inference_mode():
        compress(model, SVD)
        compress(other, SVD, calibration=[{"x": batch()}])
    for each in (model, other):
        each(batch()).sum().backward()
        assert each.first.weight.grad is not None


def test_functions_of_torch_func_and_meta_tensors_pass() -> None:
    model, x = Net(), batch()
    compress(model, SVD)
    each = torch.func.vmap(model)(x)
    torch.testing.assert_close(each, model(x), rtol=1e-5, atol=1e-6)
    slopes = torch.func.vmap(torch.func.grad(lambda row: model(row).sum()))(x)
    wanted = torch.autograd.functional.jacobian(lambda rows: model(rows).sum(), x)
    torch.testing.assert_close(slopes, wanted, rtol=1e-4, atol=1e-6)
    assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == (6, 4)


@pytest.mark.parametrize("work", [analyze, compress])
@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128, torch.int8],
    ids=str,
)
def test_a_dtype_without_a_spectrum_is_named(work: Callable[..., Any], dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48))
    model[1].weight = nn.Parameter(torch.ones(48, 48).to(dtype), requires_grad=False)
    settings = CompressionSettings(method="svd", rank=4, target_modules=["0", "1"])
    with pytest.raises(ValueError, match=f"the weight of '1' has dtype {dtype}, and only"):
        work(model, settings)


@pytest.mark.parametrize("use", [analyze, lambda model: compress(model, SVD)])
def test_tensors_in_which_others_lie_are_refused(use):
    """Such as those of FSDP and of tensor parallel."""
    model = Net()
    weight = model.second.weight.detach()
    model.second.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    with pytest.raises(ValueError, match=r"'second' is a TwoTensor.* before it is sharded"):
        use(model)
