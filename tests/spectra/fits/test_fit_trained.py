"""The laws on the weights of trained models."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load_file

from hf_rmt.spectra import Phase, fit_double_bulk, fit_power_law_bulk
from hf_rmt.spectra.ensembles import eigenvalues_of


def layers(folder):
    """Spectra of the matrices in the repeated blocks of a checkpoint."""
    tensors = load_file(next(folder.rglob("model.safetensors")))
    names = [name for name in tensors if ".layer." in name and tensors[name].ndim == 2]
    weights = [tensors[name].astype(float) for name in names]
    return [fit_double_bulk(eigenvalues_of(weight), weight.shape) for weight in weights]


def check_layers(fits):
    assert np.median([fit.distance for fit in fits]) <= 0.04
    assert np.median([fit.n_spikes for fit in fits]) >= 5
    assert all(fit.n_spikes <= fit.shape[1] / 6 for fit in fits)
    assert np.mean([fit.phase is Phase.SPIKED for fit in fits]) > 0.8


def test_layers_of_a_trained_bert(trained_bert):
    check_layers(layers(trained_bert))


def test_layers_of_a_trained_vision_transformer(real_data):
    check_layers(layers(real_data / "models" / "dinov2-small"))


def mlp_distances(folder, names):
    """Kolmogorov distances of the power law and of PDB on the MLP layers of a checkpoint."""
    tensors = load_file(next(folder.rglob("model.safetensors")))
    found = []
    for name, tensor in tensors.items():
        if any(part in name for part in names) and tensor.ndim == 2 and "attention" not in name:
            tall = (
                tensor.astype(float) if len(tensor) >= tensor.shape[1] else tensor.T.astype(float)
            )
            values = np.linalg.eigvalsh(tall.T @ tall)
            fits = (fit(values, tensor.shape) for fit in (fit_power_law_bulk, fit_double_bulk))
            found.append([fit.distance for fit in fits])
    return np.median(found, axis=0)


def test_a_spread_population_fits_the_mlps_of_a_trained_bert(trained_bert):
    spread, double = mlp_distances(trained_bert, (".intermediate.dense", ".output.dense"))
    assert spread <= 0.02 < 0.03 < double


def test_a_spread_population_fits_the_mlps_of_a_trained_vision_transformer(real_data):
    spread, double = mlp_distances(real_data / "models" / "dinov2-small", (".mlp.fc",))
    assert spread <= 0.02 < 0.03 < double
