from __future__ import annotations

import numpy as np
import pytest

from hf_rmt.kernels import ACTIVATIONS, resolve_activation
from hf_rmt.kernels.activations import TRAINED

GRID = np.linspace(-12, 12, 4801)


def test_every_name_of_the_table_of_transformers_has_its_function():
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2CLS, ACT2FN

    with torch.no_grad():
        for name in sorted(set(ACT2CLS) - set(TRAINED)):
            theirs = ACT2FN[name].double()(torch.from_numpy(GRID)).numpy()
            ours = resolve_activation(name)(GRID)
            # gelu_fast rounds sqrt(2 / pi) to ten digits.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8, err_msg=name)


def test_what_transformers_trains_is_refused_by_name():
    pytest.importorskip("torch")
    from transformers.activations import ACT2CLS

    assert set(TRAINED) == set(ACT2CLS) - set(ACTIVATIONS)
    for name in TRAINED:
        with pytest.raises(ValueError, match=f"'{name}' has trained parameters"):
            resolve_activation(name)


def test_unknown_names_are_refused_and_functions_pass():
    with pytest.raises(ValueError, match=r"one of \['gelu'.*got 'rleu'"):
        resolve_activation("rleu")
    assert resolve_activation(np.sin) is np.sin
    np.testing.assert_array_equal(
        resolve_activation("sign")(np.array([-2.0, 0.0, 3.0])), [-1, 0, 1]
    )
