from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from hf_rmt.spectra import Phase, fit_double_bulk, fit_unit_bulk, fit_weight, review
from hf_rmt.spectra.balance import balance
from hf_rmt.spectra.ensembles import heavy_tailed_matrix, marchenko_pastur_matrix
from hf_rmt.spectra.review import explained_spikes, localised

SHAPE = (400, 200)
CRITICAL = 1 + np.sqrt(0.5)


def gaussian(generator, shape=SHAPE):
    return generator.standard_normal(shape)


def repeated(generator):
    half = gaussian(generator, (SHAPE[0] // 2, SHAPE[1]))
    return np.concatenate([half, half])


NOISE = {
    "t3": lambda g: heavy_tailed_matrix(SHAPE, exponent=3.0, seed=g),
    "t1.5": lambda g: heavy_tailed_matrix(SHAPE, exponent=1.5, seed=g),
    "95 % zeros": lambda g: gaussian(g) * (g.random(SHAPE) < 0.05),
    "99 % zeros": lambda g: gaussian(g) * (g.random(SHAPE) < 0.01),
    "rows 9 : 1": lambda g: gaussian(g) * np.where(np.arange(400) < 200, 3.0, 1.0)[:, None],
    "a tenth 9 : 1": lambda g: gaussian(g) * np.where(np.arange(400) < 40, 3.0, 1.0)[:, None],
    "repeated": repeated,
    "empty rows": lambda g: gaussian(g) * (np.arange(400) < 250)[:, None],
    "square t3": lambda g: heavy_tailed_matrix((200, 200), exponent=3.0, seed=g),
    "square 95 % zeros": lambda g: gaussian(g, (200, 200)) * (g.random((200, 200)) < 0.05),
}


def false_spikes(draw, count, seed):
    """Spikes that a verdict of bulk+spikes vouches for, over `count` noise matrices."""
    generator = np.random.default_rng(seed)
    fits = [fit_weight(draw(generator)) for _ in range(count)]
    return sum(fit.n_spikes for fit in fits if fit.phase is Phase.SPIKED), fits


@pytest.mark.parametrize("name", NOISE)
def test_noise_of_any_entries_passes_for_no_signal(name):
    """At most one of 8 matrices may pass, with a single spike."""
    count, fits = false_spikes(NOISE[name], 8, seed=5)
    assert count <= 1
    assert all(fit.reason for fit in fits if fit.phase not in (Phase.SPIKED, Phase.RANDOM))


@pytest.mark.parametrize(
    ("name", "phase", "cause"),
    [
        ("t3", Phase.HEAVY_TAILED, "heavy-tailed entries"),
        ("95 % zeros", Phase.UNEVEN, "sparse entries"),
        ("a tenth 9 : 1", Phase.UNEVEN, "rows of unequal size"),
        ("repeated", Phase.UNEVEN, "200 of 400 rows repeat"),
    ],
)
def test_the_verdict_says_which(name, phase, cause):
    _, fits = false_spikes(NOISE[name], 8, seed=1)
    changed = [fit for fit in fits if cause in fit.reason]
    assert len(changed) >= 3
    assert all(fit.phase is phase and "explained by the entries" in fit.reason for fit in changed)
    assert all(fit.n_spikes for fit in changed)


def spread(weight, generator):
    """The same singular values between other right vectors."""
    columns = weight.shape[1]
    return weight @ np.linalg.qr(generator.standard_normal((columns, columns)))[0]


@pytest.mark.parametrize("shape", [SHAPE, (200, 200), (128, 300), (96, 64)])
@pytest.mark.parametrize("strength", [[2.5], [3, 6, 20], [50], list(np.geomspace(2.5, 200, 9))])
def test_a_signal_keeps_its_verdict(shape, strength):
    critical = 1 + np.sqrt(min(shape) / max(shape))
    for seed in range(6):
        weight = marchenko_pastur_matrix(shape, spikes=critical * np.array(strength), seed=seed)
        assert fit_weight(spread(weight, np.random.default_rng(seed))).phase is Phase.SPIKED


def emptied(weight, count):
    weight[:count] = 0
    return weight


def doubled(weight, count):
    weight[-count:] = weight[:count]
    return weight


@pytest.mark.parametrize("change", [emptied, doubled])
@pytest.mark.parametrize("share", [0.025, 0.1])
@pytest.mark.parametrize("shape", [(800, 400), (200, 200)])
def test_a_signal_beside_empty_or_repeated_rows_keeps_its_verdict(change, share, shape):
    """A few such rows move the edge by a few percent; these spikes lie far beyond it."""
    critical = 1 + np.sqrt(shape[1] / shape[0])
    spikes = critical * np.array([50.0, 20.0, 6.0])
    weight = spread(marchenko_pastur_matrix(shape, spikes=spikes, seed=0), np.random.default_rng(0))
    changed = change(weight, int(share * len(weight)))
    for each in (changed, changed.T):
        assert (fit_weight(each).phase, fit_weight(each).n_spikes) == (Phase.SPIKED, 3)


@pytest.mark.parametrize("shape", [SHAPE, (200, 200)])
def test_a_row_that_is_repeated_is_no_signal_in_any_orientation(shape):
    """Twenty copies of a row are one row of twenty times the energy."""
    weight = np.random.default_rng(0).standard_normal(shape)
    weight[-20:] = weight[0]
    fits = [fit_weight(each) for each in (weight, weight.T)]
    assert [fit.phase for fit in fits] == [Phase.UNEVEN] * 2
    assert all("rows repeat" in fit.reason for fit in fits)


def test_repeated_rows_count_as_one_row_of_their_energy():
    """Rows twice in the weight and rows sqrt(2) times as large beside zeros have one spectrum."""
    half = np.random.default_rng(0).standard_normal((200, 200))
    twice = np.concatenate([half, half])
    alone = np.concatenate([np.sqrt(2) * half, 0 * half])
    first, second = fit_weight(twice), fit_weight(alone)
    assert (first.phase, first.n_spikes) == (second.phase, second.n_spikes)
    assert (first.reason, first.phase) == (second.reason, Phase.UNEVEN)


def test_a_few_large_columns_are_a_signal_of_the_model():
    """Sigma may be diagonal: a spike on one column of the short side is spread over the rows."""
    weight = marchenko_pastur_matrix(SHAPE, spikes=CRITICAL * np.array([4.0, 9.0]), seed=0)
    fit = fit_weight(weight)
    assert (fit.phase, fit.n_spikes) == (Phase.SPIKED, 2)


@pytest.mark.parametrize(("size", "changes"), [(6.0, False), (80.0, True)])
def test_signal_beside_explained_spikes_is_counted_apart(size, changes):
    """Two strong directions in noise with four giant entries: what rises higher has the verdict."""
    generator = np.random.default_rng(0)
    strong = CRITICAL * np.array([300.0, 200.0])
    weight = spread(marchenko_pastur_matrix(SHAPE, spikes=strong, seed=0), generator)
    weight[[1, 50, 99, 301], [3, 60, 100, 10]] += size
    _, singular, basis = np.linalg.svd(weight, full_matrices=False)
    fit = fit_double_bulk(singular**2, SHAPE)
    assert fit.n_spikes == 6
    signal = [4, 5] if changes else [0, 1]
    explained = explained_spikes(fit, weight, basis[:6].T)
    np.testing.assert_array_equal(np.flatnonzero(~explained), signal)
    reviewed = review(fit, weight, lambda: basis[:6].T)
    assert ("4 of 6 spikes are explained" in reviewed.reason) is changes
    assert (reviewed is fit) is not changes
    np.testing.assert_array_equal(reviewed.is_signal, fit.is_signal)


def test_vectors_are_asked_for_only_where_it_matters():
    def never():
        raise AssertionError

    strong = marchenko_pastur_matrix(SHAPE, spikes=[90.0, 60.0], seed=0)
    fit = fit_double_bulk(np.linalg.svd(strong, compute_uv=False) ** 2, SHAPE)
    assert review(fit, spread(strong, np.random.default_rng(0)), never) is fit
    noise = marchenko_pastur_matrix(SHAPE, seed=0)
    fit = fit_double_bulk(np.linalg.svd(noise, compute_uv=False) ** 2, SHAPE)
    assert review(fit, noise, never) is fit


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_scale_and_orientation_do_not_matter(scale):
    weight = heavy_tailed_matrix(SHAPE, exponent=3.0, seed=1)
    plain = fit_weight(weight)
    assert plain.phase is Phase.HEAVY_TAILED
    for other in (fit_weight(scale * weight), fit_weight(weight.T)):
        assert (other.phase, other.reason) == (plain.phase, plain.reason)


def test_the_law_of_a_fit_is_computed_once():
    fit = fit_weight(marchenko_pastur_matrix(SHAPE, spikes=[30.0], seed=0))
    assert fit.noise_law is fit.noise_law
    twice = fit.in_units(2.0, 2 * fit.eigenvalues)
    assert twice.noise_law.upper_edge == pytest.approx(2 * fit.noise_law.upper_edge)


def test_other_methods_are_reviewed_too():
    weight = heavy_tailed_matrix(SHAPE, exponent=3.0, seed=1)
    for fit in (fit_unit_bulk, partial(fit_double_bulk, published=True)):
        assert fit_weight(weight, fit).phase is Phase.HEAVY_TAILED


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((50, 40), np.nan), "nan or inf"),
        (np.zeros((50, 40)), "zero"),
        (np.eye(40), "orthogonal"),
        (1e-200 * marchenko_pastur_matrix((50, 40), seed=0), "scale the weight"),
        (1e200 * marchenko_pastur_matrix((50, 40), seed=0), "scale the weight"),
    ],
)
def test_weights_without_a_law_have_a_reason(weight, reason):
    assert reason in fit_weight(weight).reason


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_of_any_dtype_is_a_weight_with_and_without_gradients(kind):
    weight = torch.from_numpy(marchenko_pastur_matrix(SHAPE, spikes=[30.0], seed=0)).to(kind)
    fits = [fit_weight(each) for each in (weight, torch.nn.Parameter(weight))]
    assert [(fit.phase, fit.n_spikes) for fit in fits] == [(Phase.SPIKED, 1)] * 2
    rows, columns = (scale.shape for scale in balance(torch.nn.Parameter(weight))[1:])
    assert (rows, columns) == ((400,), (200,))


def test_a_localised_vector_lives_on_few_coordinates():
    vectors = np.random.default_rng(0).standard_normal((300, 40)) ** 2
    assert not localised(vectors).any()
    assert not localised(np.ones((300, 1))).any()
    assert localised(vectors * (np.arange(300) < 60)[:, None]).all()
    assert localised(np.eye(300)[:, :3]).all()


def test_a_fit_without_a_law_is_refused():
    fit = fit_double_bulk(np.zeros(40), (50, 40))
    with pytest.raises(ValueError, match="must have a law"):
        explained_spikes(fit, np.zeros((50, 40)), np.zeros((40, 0)))
