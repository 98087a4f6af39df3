from __future__ import annotations

import pytest
import torch

from hf_rmt.nn import SpikedLinear, TernaryLinear
from hf_rmt.nn.tensor_checks import check_tensor


def test_a_right_tensor_passes() -> None:
    check_tensor("weight", torch.zeros(2, 3), (2, 3))
    check_tensor("codes", torch.zeros(4, dtype=torch.uint8), (4,), torch.uint8)


@pytest.mark.parametrize(
    ("tensor", "dtype", "words"),
    [
        (torch.zeros(2, device="meta"), None, "was not loaded"),
        (torch.zeros(3), None, r"must have shape \(2,\), got \(3,\)"),
        (torch.zeros(2), torch.uint8, "must be torch.uint8, got torch.float32"),
        (torch.zeros(2, dtype=torch.int8), None, "must be of a floating dtype"),
        (torch.tensor([0.0, float("nan")]), None, "holds nan or inf"),
        (torch.tensor([0.0, float("inf")]), None, "holds nan or inf"),
    ],
)
def test_a_wrong_one_is_refused(
    tensor: torch.Tensor, dtype: torch.dtype | None, words: str
) -> None:
    with pytest.raises(ValueError, match=f"part {words}"):
        check_tensor("part", tensor, (2,), dtype)


@pytest.mark.parametrize("layer", [SpikedLinear(64, 40, 2), TernaryLinear(64, 40)])
def test_every_tensor_of_a_layer_is_checked(layer: torch.nn.Module) -> None:
    layer.check()
    for name in list(layer.state_dict()):
        twin = type(layer)(*((64, 40, 2) if isinstance(layer, SpikedLinear) else (64, 40)))
        place, _, own = name.rpartition(".")
        part = twin.get_submodule(place)
        tensor = getattr(part, own).to("meta")
        is_parameter = own in part._parameters
        setattr(part, own, torch.nn.Parameter(tensor) if is_parameter else tensor)
        with pytest.raises(ValueError, match=f"{own} was not loaded"):
            twin.check()
