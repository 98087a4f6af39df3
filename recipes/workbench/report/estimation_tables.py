"""Further tables of `bench_spectra.py`: small matrices, noise with unusual entries, one weak spike,
and the laws by kind of layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hf_rmt.spectra import (
    DoubleBulk,
    Phase,
    SpectrumFit,
    fit_double_bulk,
    fit_power_law_bulk,
    fit_unit_bulk,
    fit_weight,
)
from hf_rmt.spectra.balance import balance
from hf_rmt.spectra.ensembles import double_bulk_matrix, heavy_tailed_matrix

Array = np.ndarray
SMALL_SHAPES = ((64, 32), (32, 32), (128, 32), (80, 40), (40, 40), (96, 48), (128, 64), (64, 64))
SMALL_SPIKES = ((6, 6, 6), (10, 6, 4), (6,) * 6, (20, 10, 5, 4), (30, 20, 10, 8, 6), (5,) * 5)
BULKS = ((0.0, (1.0, 1.0)), (0.4, (4.0, 1.0)), (0.3, (10.0, 1.0)))
STRENGTHS = (1.1, 1.2, 1.3, 1.5, 2.0)
NOISE_SHAPES = ((400, 200), (200, 200))
WEAK_SHAPE = (400, 200)
FALSE_ALARM = 0.001
LAWS: dict[str, Callable[[Array, tuple[int, int]], SpectrumFit]] = {
    "PDB": fit_double_bulk,
    "power law": fit_power_law_bulk,
    "BEMA": fit_unit_bulk,
}


def small_matrices(seeds: int) -> Iterator[str]:
    """How often the number of strong spikes in small matrices is exact, in percent."""
    yield "exact K in percent; spikes in units of the critical value"
    yield f"{'bulk':18}{'N x p':>10}" + "".join(f"{_listed(each):>15}" for each in SMALL_SPIKES)
    for mixing, variances in BULKS:
        for shape in SMALL_SHAPES:
            law = DoubleBulk(mixing, variances, min(shape) / max(shape))
            cells = []
            for strength in SMALL_SPIKES:
                spikes = law.critical_points[-1] * np.array(strength, float)
                weights = (
                    double_bulk_matrix(
                        shape, mixing=mixing, variances=variances, spikes=spikes, seed=seed
                    )
                    for seed in range(seeds)
                )
                found = [fit_double_bulk(spectrum(weight), shape).n_spikes for weight in weights]
                cells.append(100 * np.mean(np.array(found) == len(strength)))
            name = f"t {mixing:g}, {variances[0]:g}:{variances[1]:g}"
            yield f"{name:18}{_sides(shape):>10}" + "".join(f"{cell:15.0f}" for cell in cells)


def odd_noise(seeds: int) -> Iterator[str]:
    """The spikes found in noise with unusual entries, without and with a check of the entries."""
    yield f"spikes in matrices with the verdict bulk+spikes, per 100 of {seeds} noise matrices"
    yield f"{'entries':22}{'N x p':>11}{'spectrum alone':>16}{'and entries':>13}  verdicts"
    for shape in NOISE_SHAPES:
        for name, draw in noise_kinds(shape).items():
            generator = np.random.default_rng(0)
            alone, both, verdicts = 0, 0, []
            for _ in range(seeds):
                weight = draw(generator)
                fit = fit_double_bulk(spectrum(weight), shape)
                reviewed = fit_weight(weight)
                alone += fit.n_spikes * (fit.phase == Phase.SPIKED)
                both += reviewed.n_spikes * (reviewed.phase == Phase.SPIKED)
                verdicts.append(str(reviewed.phase))
            counts = ", ".join(f"{verdicts.count(each)} {each}" for each in sorted({*verdicts}))
            rates = f"{100 * alone / seeds:16.0f}{100 * both / seeds:13.0f}"
            yield f"{name:22}{_sides(shape):>11}{rates}  {counts}"


def noise_kinds(shape: tuple[int, int]) -> dict[str, Callable[[np.random.Generator], Array]]:
    """By name, functions that draw noise matrices with unusual entries."""
    rows = np.arange(shape[0])

    def gaussian(generator: np.random.Generator) -> Array:
        return generator.standard_normal(shape)

    def student(degrees: float) -> Callable[[np.random.Generator], Array]:
        return lambda g: heavy_tailed_matrix(shape, exponent=degrees, seed=g)

    def sparse(kept: float) -> Callable[[np.random.Generator], Array]:
        return lambda g: gaussian(g) * (g.random(shape) < kept)

    def unequal(share: float) -> Callable[[np.random.Generator], Array]:
        return lambda g: gaussian(g) * np.where(rows < share * shape[0], 3.0, 1.0)[:, None]

    return {
        "Gaussian": gaussian,
        "Laplace": lambda g: g.laplace(size=shape),
        **{f"Student t {degrees:g}": student(degrees) for degrees in (5, 3, 1.5)},
        **{f"{zeros:.0%} zeros": sparse(1 - zeros) for zeros in (0.95, 0.99)},
        "rows 9 : 1, half": unequal(0.5),
        "rows 9 : 1, a tenth": unequal(0.1),
        "rows repeated": lambda g: gaussian(g)[rows % (shape[0] // 2)],
    }


def weak_spike(seeds: int) -> Iterator[str]:
    """One weak spike in noise of known law: how often it is found, and the error of its size."""
    aspect = WEAK_SHAPE[1] / WEAK_SHAPE[0]
    critical = 1 + np.sqrt(aspect)
    null = [_draw(1.0, seed) for seed in range(int(4 / FALSE_ALARM))]
    largest = np.quantile([values[-1] for values in null], 1 - FALSE_ALARM)
    false = np.mean([fit_double_bulk(each, WEAK_SHAPE).n_spikes > 0 for each in null[:1000]])
    yield (
        f"{_sides(WEAK_SHAPE)}, unit bulk, {seeds} draws; oracles know the bulk's variance and "
        f"have {FALSE_ALARM:.1%} false alarms in {len(null)} draws, ours {false:.1%} in 1000"
    )
    yield f"{'strength':>8}{'ours':>7}{'largest':>9}{'likelihood':>12}{'bias':>8}{'corrected':>11}"
    for strength in STRENGTHS:
        alpha = strength * critical
        ratios = [likelihood_ratio(each, alpha, WEAK_SHAPE[0]) for each in null]
        threshold = np.quantile(ratios, 1 - FALSE_ALARM)
        draws = [_draw(alpha, len(null) + seed) for seed in range(seeds)]
        fits = [fit for each in draws if (fit := fit_double_bulk(each, WEAK_SHAPE)).n_spikes == 1]
        found = (
            len(fits) / seeds,
            np.mean([values[-1] > largest for values in draws]),
            np.mean([likelihood_ratio(each, alpha, WEAK_SHAPE[0]) > threshold for each in draws]),
        )
        plain = [fit.noise_law.spike_inverse(fit.eigenvalues[0]) / alpha - 1 for fit in fits]
        corrected = [fit.spikes[0] / alpha - 1 for fit in fits]
        cells = "{:7.0%}{:9.0%}{:12.0%}".format(*found)
        yield f"{strength:8.1f}{cells}{np.mean(plain):+8.1%}{np.mean(corrected):+11.1%}"


def likelihood_ratio(values: Array, alpha: float, rows: int) -> float:
    """Logarithm, up to a constant, of the likelihood ratio of one spike alpha in a unit bulk.

    The eigenvalues are lambda, and L is their diagonal matrix. The average over the direction x of
    the spike is the integral of exp(theta x'Lx) over the sphere, with theta = N (1 - 1/alpha) / 2.
    It equals the contour integral of exp(theta z) prod (z - lambda)^(-1/2), taken on the vertical
    line through its saddle point (Onatski, Moreira & Hallin, Ann. Statist. 41 (2013), lemma 1).
    """
    theta = rows * (1 - 1 / alpha) / 2
    low, high = values[-1] * (1 + 1e-12), values[-1] + len(values) / theta
    for _ in range(60):
        saddle = (low + high) / 2
        falls = np.sum(0.5 / (saddle - values)) < theta
        low, high = (low, saddle) if falls else (saddle, high)
    width = 1 / np.sqrt(np.sum(0.5 / (saddle - values) ** 2))
    line = saddle + 1j * width * np.linspace(-8, 8, 129)
    factors = np.log((line[:, None] - values) / (saddle - values))
    exponent = theta * (line - saddle) - 0.5 * factors.sum(1)
    integral = np.sum(np.exp(exponent)).real * width
    return float(theta * saddle - 0.5 * np.sum(np.log(saddle - values)) + np.log(integral))


def _draw(alpha: float, seed: int) -> Array:
    """Ascending eigenvalues of a unit bulk with one spike."""
    weight = np.random.default_rng(seed).standard_normal(WEAK_SHAPE) / np.sqrt(WEAK_SHAPE[0])
    weight[:, 0] *= np.sqrt(alpha)
    return np.linalg.eigvalsh(weight.T @ weight)


def law_table(model: str, layers: dict[str, Array], balanced: bool) -> Iterator[str]:
    """Kolmogorov distance, number of spikes and fitting time of each law, by kind of layer."""
    what = "rows and columns balanced first" if balanced else "weights as they are"
    yield f"{model}, {what}: median distance, median K, fit over eigenvalues"
    yield f"{'layers':18}" + "".join(f"{name:>26}" for name in LAWS)
    groups = {"MLP": is_mlp, "attention": lambda name: not is_mlp(name), "all": lambda name: True}
    fits = {name: _fits(weight, balanced) for name, weight in layers.items()}
    for group, belongs in groups.items():
        chosen = [fits[name] for name in layers if belongs(name)]
        if not chosen:
            continue
        cells = [np.nanmedian([row[law] for row in chosen], axis=0) for law in LAWS]
        text = "".join(f"{cell[0]:12.4f}{cell[1]:6.0f}{cell[2]:8.2f}" for cell in cells)
        yield f"{f'{group} ({len(chosen)})':18}{text}"


def is_mlp(name: str) -> bool:
    """Whether a layer belongs to the MLP of its block, by its name."""
    inside = "intermediate" in name or ".mlp." in name
    return inside or ("output.dense" in name and "attention" not in name)


def _fits(weight: Array, balanced: bool) -> dict[str, tuple[float, int, float]]:
    matrix = balance(weight)[0] if balanced else weight
    start = time.perf_counter()
    values = spectrum(matrix)
    eigenvalues = time.perf_counter() - start
    found = {}
    for name, law in LAWS.items():
        start = time.perf_counter()
        fit = law(values, weight.shape)
        found[name] = fit.distance, fit.n_spikes, (time.perf_counter() - start) / eigenvalues
    return found


def spectrum(weight: Array) -> Array:
    """Eigenvalues of the smaller Gram matrix."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    return np.linalg.eigvalsh(tall.T @ tall)


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _sides(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
