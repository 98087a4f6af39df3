from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import hf_rmt
from hf_rmt.kernels import NoMatchError, gaussian_moments
from hf_rmt.kernels.random_features import TernaryRandomFeatures, gaussian_kernel_activation


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((160, 160))


def dense_weights(features: TernaryRandomFeatures) -> np.ndarray:
    """W, unpacked bit by bit."""
    nonzero, negative = features.packed_weights_
    rows = []
    for kept, signs in zip(nonzero, negative, strict=True):
        kept = "".join(f"{byte:08b}" for byte in kept)
        signs = "".join(f"{byte:08b}" for byte in signs)
        values = [int(a) * (1 - 2 * int(b)) for a, b in zip(kept, signs, strict=True)]
        rows.append(values[: features.n_features_in_])
    return np.array(rows) / np.sqrt(1 - features.sparsity)


def from_identity(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Relative distance in operator norm of the centred kernels, modulo the identity."""
    projection = np.eye(len(kernel)) - 1 / len(kernel)
    eigenvalues = np.linalg.eigvalsh(projection @ (kernel - reference) @ projection)
    others = np.delete(eigenvalues, np.abs(eigenvalues).argmin())  # the constant vector's
    size = np.linalg.norm(projection @ reference @ projection, 2)
    return float((others[-1] - others[0]) / 2 / size)


@parametrize_with_checks([TernaryRandomFeatures(10)])
def test_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("sparsity", "width"), [(0.0, 3), (0.5, 8), (0.9, 17)])
def test_features_are_those_of_the_dense_formula(sparsity, width):
    data = 3 + np.random.default_rng(1).standard_normal((40, width))
    found = TernaryRandomFeatures(2500, sparsity=sparsity, random_state=3).fit(data)
    weights = dense_weights(found)
    mean = data.mean(0)
    arguments = (data - mean) @ weights.T / np.sqrt(width)
    wanted = found.activation_(arguments) / np.sqrt(2500)
    np.testing.assert_allclose(found.transform(data), wanted, atol=1e-12)
    assert found.tau_ == pytest.approx(np.sqrt(((data - mean) ** 2).sum(1).mean() / width))
    # 2500 width independent entries: five standard deviations of their variance
    tolerance = 5 * np.sqrt((1 / (1 - sparsity) - 1) / weights.size) + 1e-12
    assert (weights**2).mean() == pytest.approx(1, abs=tolerance)
    assert abs(weights.mean()) < 5 / np.sqrt(weights.size)


@pytest.mark.parametrize(("frequency", "tau"), [(1.0, 1.0), (1.7, 0.6)])
def test_the_sum_of_cosine_and_sine_has_the_moments_of_the_gaussian_kernel(frequency, tau):
    found = gaussian_moments(lambda x: gaussian_kernel_activation(x, frequency=frequency), tau=tau)
    pair = [
        gaussian_moments(function, tau=tau)
        for function in (lambda x: np.cos(frequency * x), lambda x: np.sin(frequency * x))
    ]
    for name in ("d0", "d1", "d2"):
        wanted = sum(getattr(moments, name) for moments in pair)
        assert getattr(found, name) == pytest.approx(wanted, abs=1e-12)


def test_the_kernel_is_the_gaussian_one(data):
    # What theory at p = 160 and chance with 20,000 features leave is below 0.1; features of half
    # or twice the bandwidth are 0.18 away.
    gamma = 0.25 / data.shape[1]
    found = TernaryRandomFeatures(20_000, sparsity=0.9, gamma=gamma, random_state=0)
    features = found.fit_transform(data)
    kernel = np.exp(-gamma * cdist(data, data, "sqeuclidean"))
    assert from_identity(features @ features.T, kernel) < 0.13
    naive = np.where(np.abs(features) > 0, 1.0, 0.0)
    assert from_identity(naive @ naive.T / naive.shape[1], kernel) > 0.3


def test_scaling_and_shifting_the_data_changes_nothing_of_the_scaled_kernel(data):
    found = TernaryRandomFeatures(50, random_state=0).fit_transform(data)
    moved = TernaryRandomFeatures(50, random_state=0).fit_transform(4 * data + 1)
    np.testing.assert_allclose(moved, found, atol=1e-9)


def test_the_step_has_the_moments_of_the_activation_at_the_scale_of_the_data(data):
    for activation in ("relu", "tanh"):
        for levels in (1, 2, None):
            fitted = TernaryRandomFeatures(activation=activation, levels=levels).fit(2 * data)
            target = gaussian_moments(activation, tau=fitted.tau_)
            step = fitted.activation_.moments_at(fitted.tau_)
            assert (step.d1, step.d2) == pytest.approx((target.d1, target.d2), abs=1e-9)
            assert step.d0 > target.d0 - 1e-9
    assert step.d0 == pytest.approx(target.d0)


def test_memory_is_counted(data):
    found = TernaryRandomFeatures(64, activation="relu").fit(data.astype(np.float32))
    step = 64 * (2 + 3)
    assert found.memory_bits_ == 2 * 64 * 160 + 32 * 160 + step
    assert found.feature_bits_ == 2 * 64
    assert TernaryRandomFeatures(64, activation="relu", levels=1).fit(data).feature_bits_ == 64
    exact = TernaryRandomFeatures(64, activation="relu", levels=None).fit(data)
    assert exact.feature_bits_ == 3 * 64  # of 7 levels
    assert found.transform(data.astype(np.float32)).dtype == np.float32


def test_the_seed_decides(data):
    def run(seed: int | np.random.RandomState) -> np.ndarray:
        return TernaryRandomFeatures(20, random_state=seed).fit_transform(data)

    np.testing.assert_array_equal(run(1), run(1))
    np.testing.assert_array_equal(run(1), run(np.random.RandomState(1)))
    assert (run(1) != run(2)).any()


def test_pipeline_and_grid_search(data):
    target = np.tanh(data[:, 0]) * data[:, 1]
    features = TernaryRandomFeatures(30, activation="tanh", random_state=0)
    pipeline = make_pipeline(features, Ridge())
    grid = [
        {"ternaryrandomfeatures__levels": [1, 2]},
        {"ternaryrandomfeatures__sparsity": [0.8], "ternaryrandomfeatures__activation": [np.sign]},
    ]
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(data, target)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(data), search.predict(data))
    names = search.best_estimator_[:-1].get_feature_names_out()
    assert names[-1] == "ternaryrandomfeatures29"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components must be .* got 0"),
        ({"n_components": 2.5}, "n_components must be .* got 2.5"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"gamma": 0.0}, "gamma must be a positive number or 'scale', got 0.0"),
        ({"gamma": "auto"}, "gamma must be a positive number or 'scale', got 'auto'"),
        ({"gamma": np.array([1.0, 2.0])}, "gamma must be a positive number or 'scale', got array"),
        ({"levels": 0}, "levels must lie in"),
        ({"activation": np.zeros_like}, "zeros_like.* is constant"),
        ({"activation": "prelu"}, "trained parameters"),
    ],
)
def test_parameters_out_of_range(data, options, message):
    with pytest.raises(ValueError, match=message):
        TernaryRandomFeatures(**options).fit(data)


def test_no_match_and_no_scale(data):
    with pytest.raises(NoMatchError, match="levels=3 reaches at most"):
        TernaryRandomFeatures(activation="relu", levels=3).fit(data)
    with pytest.raises(ValueError, match="rows of X must differ"):
        TernaryRandomFeatures().fit(np.ones((5, 3)))


def test_every_number_of_levels_matches_the_gaussian_kernel_from_wide_to_narrow(data):
    distance = 2 * data.shape[1] * TernaryRandomFeatures().fit(data).tau_ ** 2
    for exponent in (1e-6, 2.0, 29.0):
        for levels in (1, 2):
            step = TernaryRandomFeatures(levels=levels, gamma=exponent / distance).fit(data)
            moments, target = step.activation_.moments, step.activation_.target
            assert (moments.d1, moments.d2) == pytest.approx((target.d1, target.d2), rel=1e-3)


@pytest.mark.parametrize("levels", [1, 2, None])
def test_a_gamma_that_shows_no_kernel_is_named(data, levels):
    for gamma, size in ((100.0, "large"), (1.0, "large"), (1e-30, "small")):
        features = TernaryRandomFeatures(gamma=gamma, levels=levels)
        with pytest.raises(ValueError, match=rf"gamma={gamma!r} is too {size} .* or 'scale'"):
            features.fit(data)


def test_levels_must_be_a_whole_number(data):
    for levels in (2.0, "two", True):
        with pytest.raises(TypeError, match="levels must be a whole number"):
            TernaryRandomFeatures(levels=levels).fit(data)


def test_the_package_gives_it_and_the_kernels_do_without_scikit_learn():
    assert hf_rmt.TernaryRandomFeatures is TernaryRandomFeatures
    script = "import sys, hf_rmt, hf_rmt.kernels; print('sklearn' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stdout.strip() == "False", process.stderr
    script = """
import sys
sys.modules["sklearn"] = None
import hf_rmt
try:
    hf_rmt.TernaryRandomFeatures
except ImportError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'hf_rmt[sklearn]'" in process.stdout, process.stderr
