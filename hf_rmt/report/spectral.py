"""The report of an analysis: the spectrum (eigenvalues) of every layer, and a verdict on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rmt.report import records, tables, verdicts
from hf_rmt.report.depth import short_names
from hf_rmt.report.figures.style import save_figure
from hf_rmt.report.folder import save_report
from hf_rmt.report.layer import MISFIT, LayerSpectrum
from hf_rmt.report.page.data import spectral_content
from hf_rmt.report.page.page import PAGES, page_text
from hf_rmt.spectra import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SpectralReport:
    """The spectra (eigenvalues of the weights) of a model's layers, in the order of the model.

    Args:
        layers: The spectra of the layers; `report[name]` returns that of one layer.

    Raises:
        ValueError: If two layers have the same name.
    """

    layers: tuple[LayerSpectrum, ...]

    def __post_init__(self) -> None:
        names = Counter(layer.name for layer in self.layers)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"names of layers must differ, got {twice} twice; report each once")

    def __iter__(self) -> Iterator[LayerSpectrum]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpectrum:
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = [layer.name for layer in self.layers]
        close = [known for known in names if str(name) in known][:3]
        close = close or get_close_matches(str(name), names, cutoff=0.4) or names[:3]
        raise KeyError(f"no layer is called {name!r}; did you mean one of {close}?")

    def __str__(self) -> str:
        return self.table()

    def summary(self) -> str:
        """One line: the number of layers with each verdict, then medians over the layers.

        `SpectrumFit.phase` lists the verdicts on a layer's eigenvalues. The medians are those of
        the three quantities that `plot_overview` explains.
        """
        if not self.layers:
            return "no layers"
        phases = Counter(str(layer.fit.phase) for layer in self.layers)
        counts = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
        fitted = [layer.fit for layer in self.layers if layer.fit.phase != Phase.DEGENERATE]
        text = f"{tables.counted(len(self), 'layer')}: {counts}"
        if not fitted:
            return text
        spikes = median(fit.n_spikes for fit in fitted)
        energy = median(fit.signal_energy for fit in fitted)
        distances = [fit.distance for fit in fitted if fit.law is not None]
        noun = "spike" if distances else "direction"
        number = f"{spikes:g} {noun}" if spikes == 1 else f"{spikes:g} {noun}s"
        text += f"; in the median {number} with {tables.percent(energy)} of the energy"
        if not distances:
            return text
        return f"{text}, Kolmogorov distance {median(distances):.3f}"

    def table(self) -> str:
        """A table in plain text, one line per layer, followed by `explain()` and `summary()`."""
        rows = tables.aligned_table([layer.to_row() for layer in self.layers])
        return "\n\n".join(filter(None, [rows, self.explain(), self.summary()]))

    def explain(self) -> str:
        """A paragraph for each verdict in this report: what it means and what to do."""
        return verdicts.footnotes(layer.fit.phase for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: for each layer the row of the table and the whole `SpectrumFit`."""
        return {
            "summary": self.summary(),
            "layers": [
                records.plain({**layer.to_row(), "shape": layer.shape, "fit": layer.fit})
                for layer in self.layers
            ],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Strict JSON with all eigenvalues, so that figures can be drawn again; nan is null.

        Args:
            path: The file to write, with the ending `.json`; None writes no file.

        Returns:
            The text.
        """
        return records.written(records.json_text(self.to_dict()), path, kinds=(".json",))

    @classmethod
    def from_json(cls, source: str | Path) -> SpectralReport:
        """Read a report that `to_json` wrote, exact to the last bit.

        Args:
            source: The JSON text, or the path of a file that holds it.

        Returns:
            The report.

        Raises:
            ValueError: If the source is no report, or one that a newer version wrote.
        """
        content = records.read(source)
        try:
            return cls(
                tuple(
                    LayerSpectrum(
                        entry["name"], tuple(entry["shape"]), records.fit_of(entry["fit"])
                    )
                    for entry in content["layers"]
                )
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"this is no spectral report: {error!r}; pass what SpectralReport.to_json wrote"
            ) from error

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows of `table` as comma-separated values, in full precision.

        Args:
            path: The file to write, with the ending `.csv`; None writes no file.

        Returns:
            The text.
        """
        return records.written(
            tables.csv_text([layer.to_row() for layer in self.layers]), path, kinds=(".csv",)
        )

    def to_html(self, path: str | Path | None = None, *, title: str = "Spectral report") -> str:
        """One HTML page that needs no network and no other file.

        The page shows a figure of the layers over the depth of the model, and a table of the layers
        that the reader can sort and filter. A click on a layer opens the spectrum of its weight.

        Args:
            path: The file to write, with the ending `.html`; None writes no file.
            title: Heading of the page, such as the name of the model.

        Returns:
            The text of the page.
        """
        return records.written(
            page_text(spectral_content(self.layers, self.summary()), title=title),
            path,
            kinds=PAGES,
        )

    def plot_layer(self, name: str, *, square_root: bool = True, dark: bool = False) -> Figure:
        """Draw one layer's spectrum with law, edges and spikes (see `plots.spectrum_figure`).

        Args:
            name: Name of the layer.
            square_root: Whether the horizontal axis shows singular values, the square roots of the
                eigenvalues.
            dark: Draw on a dark background.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            KeyError: If no layer has this name.
        """
        from hf_rmt.report.figures.plots import spectrum_figure

        layer = self[name]
        share = tables.percent(layer.fit.signal_energy)
        title = f"{name}\n{tables.shape_text(layer.shape)}, {layer.fit.phase}"
        if layer.fit.n_spikes:
            title += f", {tables.counted_signal(layer.fit)} with {share} of the energy"
        return spectrum_figure(layer.fit, title=title, square_root=square_root, dark=dark)

    def plot_overview(self, *, dark: bool = False) -> Figure:
        """Draw spike counts, signal energies and Kolmogorov distances over the depth of the model.

        Each kind of layer has a line. A spike is an eigenvalue that stands out of the noise. The
        signal energy is the signal's share of the squared norm. The Kolmogorov distance says how
        far the noise is from its law, the density that theory predicts.

        Args:
            dark: Draw on a dark background.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the report has no layers.
        """
        from hf_rmt.report.figures.plots import depth_figure

        fits = [layer.fit for layer in self.layers]
        lawless = all(fit.phase == Phase.LAWLESS for fit in fits)
        panels: dict[str, list[float]] = {
            f"{'directions' if lawless else 'spikes'}\n(count)": [fit.n_spikes for fit in fits],
            "signal energy\n(fraction)": [fit.signal_energy for fit in fits],
        }
        if not lawless:
            panels["Kolmogorov\ndistance"] = [fit.distance for fit in fits]
        return depth_figure(
            [layer.name for layer in self.layers],
            panels,
            hollow=[layer.is_misfit for layer in self.layers],
            hollow_label=MISFIT,
            dark=dark,
        )

    def plot_grid(
        self,
        names: Sequence[str] | None = None,
        max_layers: int = 12,
        *,
        square_root: bool = True,
        dark: bool = False,
    ) -> Figure:
        """Draw the spectra (squared singular values) of several layers' weights side by side.

        Args:
            names: Names of the layers to draw. None takes up to `max_layers` layers, spread evenly
                over the model.
            max_layers: Largest number of layers that are drawn if `names` is None.
            square_root: Whether the horizontal axis shows singular values, the square roots of the
                eigenvalues.
            dark: Draw on a dark background.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            KeyError: If no layer has one of the names.
        """
        from hf_rmt.report.figures.plots import grid_figure

        chosen = self.layers if names is None else [self[name] for name in names]
        if names is None and len(chosen) > max_layers:
            steps = np.linspace(0, len(chosen) - 1, max_layers).round().astype(int)
            chosen = [chosen[k] for k in steps]
        titles = short_names([layer.name for layer in chosen])
        fits = [(title, layer.fit) for title, layer in zip(titles, chosen, strict=True)]
        title = f"{len(chosen)} of {len(self)} layers" if len(chosen) < len(self) else ""
        return grid_figure(fits, title=title, square_root=square_root, dark=dark)

    def save(self, folder: str | Path) -> None:
        """Write table.txt, report.json, report.html, layers.csv and the figures.

        Figures are overview.svg, overview.png and spectra.svg. A report without layers has no
        figures.

        The texts are written first, so they exist even if the figures fail because matplotlib is
        missing.

        Args:
            folder: The folder to write to; it is made if it does not exist.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        target = save_report(self, folder)
        if self.layers:
            save_figure(self.plot_grid(), target / "spectra.svg")
