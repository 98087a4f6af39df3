from __future__ import annotations

import importlib
import json
import zlib
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_rmt.kernels import match_network

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("ntk_mlp")


@pytest.fixture
def layers(recipe: Any) -> Any:
    return importlib.import_module("workbench.models.mlp_layers")


def weight_of(linear: Any) -> np.ndarray:
    return (linear.dense() if hasattr(linear, "dense") else linear.weight).numpy()


def test_weights_are_what_the_method_says(layers):
    count = 300 * 400
    for name, method in layers.METHODS.items():
        weight = weight_of(layers.random_linear(method, (300, 400), 0))
        assert weight.shape == (400, 300)
        # five standard deviations of a share and, with the kurtosis 10 of our sparsest, a variance
        assert (weight == 0).mean() == pytest.approx(method.sparsity, abs=2.5 / count**0.5), name
        assert (weight**2).mean() == pytest.approx(1, abs=5 * 3 / count**0.5), name
    dense = weight_of(layers.random_linear(layers.METHODS["dense"], (300, 400), 0))
    pruned = weight_of(layers.random_linear(layers.Method("pruned", 0.9, "relu"), (300, 400), 0))
    assert np.abs(dense[pruned != 0]).min() > np.abs(dense[pruned == 0]).max()


@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_layers_are_those_of_the_formula_and_keep_the_scale(layers, seed):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((64, 50)).astype("f4")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    steps = match_network(["relu"] * 3, tau=1.0, levels=None)
    for name, method in layers.METHODS.items():
        net = layers.hidden_layers(method, (50, 900, 800, 700), seed)
        hidden = x.astype(float)
        for layer, step in zip(net, steps, strict=True):
            arguments = hidden @ weight_of(layer.linear).T.astype(float)
            if method.activation == "relu":
                values = np.maximum(arguments, 0) - step.target.tau / (2 * np.pi) ** 0.5
            elif method.activation == "exact":
                values = step(arguments)
            elif method.activation == "naive":
                values = ((np.abs(arguments) > 1) - 0.3173) / (0.3173 * 0.6827) ** 0.5
            else:
                values = layer.activation(torch.from_numpy(arguments)).numpy()
                assert len(np.unique(values)) == 2
            hidden = values / values.shape[1] ** 0.5
        wanted = 1.0 if method.activation == "naive" else steps[-1].target.tau_out
        # widths near 800, 64 inputs: chance moves the scale by a few per cent
        assert (hidden**2).sum(1).mean() ** 0.5 == pytest.approx(wanted, rel=0.12), name
        found = net(torch.from_numpy(x)).detach().numpy()
        # an argument that rounds to the other side of a threshold moves single values
        assert np.median(np.abs(found - hidden)) < 1e-4, name


def test_bits_of_weights_and_activations(layers):
    def bits(name: str) -> tuple[int, int]:
        return layers.weight_bits(layers.random_linear(layers.METHODS[name], (400, 500), 0))

    count = 400 * 500
    assert bits("dense") == (32 * count, 32 * count)
    assert bits("ternary, sparsity 0, exact") == (2 * count + 32, count + 32)
    packed, coded = bits("ternary, sparsity 0.9, exact")
    entropy = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.05)
    assert packed == 2 * count + 32
    assert entropy < coded / count < 1.03 * entropy
    packed, coded = bits("90 % pruned by magnitude")
    assert packed == count + 32 * round(0.1 * count)
    assert coded - 32 * round(0.1 * count) < 0.49 * count
    flags = np.packbits(np.random.default_rng(0).random(10_000) < 0.1).tobytes()
    assert zlib.decompress(layers.huffman(flags)) == flags
    values = {
        name: [layers.value_bits(layer.activation) for layer in net]
        for name, method in layers.METHODS.items()
        for net in [layers.hidden_layers(method, (20, 10, 10, 10), 0)]
    }
    assert values["dense"] == values["ternary, sparsity 0.9, relu"] == [32] * 3
    assert values["naive binary activation"] == values["ternary, sparsity 0.9, 1 bit"] == [1] * 3
    assert values["ternary, sparsity 0.5, exact"] == [3] * 3


def test_trained_layers_keep_the_scale_of_the_dense_network(layers):
    trained = importlib.import_module("workbench.training.mlp_trained")
    torch.manual_seed(0)
    sizes = (40, 300, 300, 300)
    parts = [
        part
        for a, b in pairwise(sizes)
        for part in (torch.nn.Linear(a, b, bias=False), torch.nn.ReLU())
    ]
    net, x = torch.nn.Sequential(*parts, torch.nn.Linear(300, 10)), torch.randn(500, 40)
    before = [weight.clone() for weight in net.parameters()]
    wanted = []
    for part in parts:
        wanted.append(part(wanted[-1] if wanted else x))
    for name, method in layers.METHODS.items():
        found, hidden = trained.trained_layers(method, net, x, 0), x
        for place, layer in enumerate(found):
            tau = wanted[2 * place].square().mean().sqrt().item()
            arguments = layer.linear(hidden)
            assert arguments.square().mean().sqrt().item() == pytest.approx(tau, rel=1e-4), name
            kept = 1 - (weight_of(layer.linear) == 0).mean()
            assert kept == pytest.approx(1 - method.sparsity, abs=0.02), name
            hidden = layer(hidden)
            if method.activation in ("exact", "one level"):  # mean and slope are relu's
                normal = tau * torch.randn(400_000)
                outputs = layer.activation(normal)
                assert outputs.mean() == pytest.approx(tau / (2 * np.pi) ** 0.5, rel=0.02)
                assert (outputs * normal).mean() / tau**2 == pytest.approx(0.5, rel=0.02)
        if name == "dense":
            torch.testing.assert_close(hidden, wanted[-1])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_equal_memory_takes_the_widest_that_fits(recipe):
    def rows(accuracy: float, bits: int) -> list[dict[str, Any]]:
        return [{"accuracy": accuracy, "coded": bits, "readout": 10, "activations": 5}]

    ours = "ternary, sparsity 0.9, exact"
    runs = {
        ("dense", 10): rows(0.9, 1000),
        ("dense", 20): rows(0.95, 100),
        (ours, 10): rows(0.8, 500),
        (ours, 20): rows(0.85, 1000),
        (ours, 40): rows(0.99, 1001),
    }
    dense, small = recipe.equal_memory(runs)
    assert dense[ours] == "0.8500 (20)"
    assert small[ours] is None


def test_vectors_are_centred_and_those_of_the_model_asked_for(recipe, monkeypatch, tmp_path):
    data = importlib.import_module("workbench.data.vectors")
    generator = np.random.default_rng(0)
    pixels = {part: generator.integers(0, 256, (60, 32, 32, 3)) for part in ("train", "test")}
    labels = generator.integers(0, 10, 60)
    np.savez(
        tmp_path / "cifar.npz",
        **{f"{part}_x": values.astype("u1") for part, values in pixels.items()},
        **{f"{part}_y": labels for part in pixels},
    )

    class Means(torch.nn.Module):
        """Class tokens are the means of the channels, and twice that of the first."""

        def forward(self, images: torch.Tensor) -> Any:
            assert images.shape[1:] == (3, 40, 40)
            means = images.mean((2, 3))
            tokens = torch.cat([means, 2 * means[:, :1]], 1)
            return SimpleNamespace(last_hidden_state=torch.stack([tokens, 0 * tokens], 1))

    monkeypatch.setattr(data.AutoModel, "from_pretrained", lambda name: Means())
    arguments = SimpleNamespace(
        embedded=False,
        trained=False,
        data_dir=str(tmp_path / "cifar.npz"),
        task="mnist",
        features="model",
        image_size=40,
        selection_samples=10,
        output_dir=str(tmp_path / "out"),
    )
    split = data.read_splits(arguments)
    assert split.name == "features of CIFAR10"
    assert [len(part.targets) for part in split[1:]] == [50, 10, 60]
    for part in split[1:]:
        assert part.features.shape[1] == 4
        np.testing.assert_allclose(np.linalg.norm(part.features, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(
            part.features[:, 3], 2 * part.features[:, 0], rtol=0.02, atol=0.02
        )
    np.testing.assert_array_equal(split.test.targets.argmax(1), labels)
    tokens = torch.load(tmp_path / "out" / "features.pt")
    train = np.random.default_rng(0).permutation(60)[10:]
    centred = (tokens[2] - tokens[0][train].mean(0)).numpy()
    wanted = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(split.test.features, wanted, atol=2e-3)  # a mean of 16 bits
    monkeypatch.setattr(data.AutoModel, "from_pretrained", None)
    again = data.read_splits(arguments)
    np.testing.assert_array_equal(again.test.features, split.test.features)


def called(recipe: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["ntk_mlp.py", *options])
    recipe.main()


def test_the_embedded_study_runs_once(recipe, monkeypatch, tmp_path):
    methods = ["dense", "ternary, sparsity 0.9, exact", "naive binary activation"]
    options = ["--embedded", "--seeds", "0", "--methods", *methods, "--output_dir", str(tmp_path)]
    called(recipe, monkeypatch, *options, "--widths", "160", "40")
    cells = json.loads((tmp_path / "results.json").read_text())["results"]
    accuracy = {(cell["method"], cell["column"]): cell["values"][0] for cell in cells}
    assert accuracy["dense", "width 160"] > max(0.8, accuracy["dense", "width 40"])
    assert accuracy[methods[1], "width 160"] > 0.7
    text = (tmp_path / "results.md").read_text()
    assert "dense, 40: 0.203 Mbit packed" in text
    assert "3-bit activations" in text
    assert methods[2] in (tmp_path / "equal-memory.md").read_text()
    assert (tmp_path / "memory.png").stat().st_size > 1000
    monkeypatch.setattr(recipe, "run", None)
    called(recipe, monkeypatch, *options, "--widths", "40")
    assert "width 160" in (tmp_path / "results.md").read_text()
    with pytest.raises(SystemExit, match="another setting"):
        called(recipe, monkeypatch, *options, "--selection_samples", "20")


def test_trained_networks_are_compressed_after_training(recipe, monkeypatch, tmp_path):
    methods = ["dense", "ternary, sparsity 0.5, exact"]
    options = ["--embedded", "--trained", "--epochs", "6", "--widths", "60", "--seeds", "0"]
    options += ["--output_dir", str(tmp_path), "--methods", *methods]
    called(recipe, monkeypatch, *options)
    cells = json.loads((tmp_path / "results.json").read_text())["results"]
    accuracy = {cell["method"]: cell["values"][0] for cell in cells}
    assert accuracy["dense"] > 0.9  # random layers of this width stay near 0.8
    assert accuracy[methods[1]] > 0.7
    assert "trained hidden layers on digits" in (tmp_path / "results.md").read_text()
