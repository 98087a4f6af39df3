"""The report of a compression: what happened to each layer, its size, loss and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rmt.plan import CompressionPlan, LayerPlan, Outcome
from hf_rmt.report import records, tables, verdicts
from hf_rmt.report.folder import save_report
from hf_rmt.report.page.data import STAYS_DENSE, compression_content
from hf_rmt.report.page.page import PAGES, page_text
from hf_rmt.report.sizes import COVERED, FILE, Sizes
from hf_rmt.report.spectral import SpectralReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")
UNKNOWN = Sizes()


@dataclass(frozen=True)
class CompressionReport:
    """A compression plan in words, tables and figures, whether it was carried out or not.

    Args:
        plan: What happens to each layer.
        spectra: The spectra (squared singular values of the weights) on which the plan is based.
            They are saved with the report if they are given.
        sizes: Bytes of the saved weights, and number of parameters of the whole model. Unknown ones
            are None.
        clock: A function that measures the time of each layer of a plan on this machine, and
            returns the plan with these times. None measures nothing.
        of_update: Whether the plan is about updates, which are what training added to the weights.
            Then all layers stay dense.
    """

    plan: CompressionPlan
    spectra: SpectralReport | None = None
    sizes: Sizes = UNKNOWN
    clock: Callable[[CompressionPlan], CompressionPlan] | None = field(
        default=None, repr=False, compare=False
    )
    of_update: bool = field(default=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.plan)

    def __str__(self) -> str:
        return self.timed().table()

    def timed(self) -> CompressionReport:
        """A report in which each layer's time is measured: compressed divided by dense.

        Printing a report measures these times too. If the machine is busy, the times stay unknown.
        Without a `clock`, the report itself is returned.
        """
        if self.clock is None:
            return self
        return replace(self, plan=self.clock(self.plan), clock=None)

    @property
    def latency(self) -> float | None:
        """Time of compressed layers divided by that before compression; None if not measured.

        The result is a mean over the measured layers. Each layer is weighted by the number of its
        entries, because the time before compression grows with this number.
        """
        measured = [layer for layer in self.plan.compressed if layer.latency is not None]
        weights = [layer.entries for layer in measured]
        times = [layer.latency or 0.0 for layer in measured]
        if not measured:
            return None
        return sum(w * t for w, t in zip(weights, times, strict=True)) / sum(weights)

    @property
    def covered(self) -> float | None:
        """Share of the whole model's parameters that lie in changed layers; None if unknown."""
        return self.sizes.share(self.plan.changed_weights)

    def summary(self) -> str:
        """Some lines of text about the compressed model.

        They tell sizes, losses, the share of the model's parameters that lie in changed layers,
        how many layers became slower, and why layers were left dense (not compressed).
        """
        file, covered = (self.sizes.line(self.plan, name) for name in (FILE, COVERED))
        return "\n".join(filter(None, [file, self._totals(), covered, *self._remarks()]))

    def _remarks(self) -> list[str]:
        dense = [layer for layer in self.plan if layer.outcome is Outcome.KEPT]
        noted = [layer for layer in self.plan.in_place if layer.reason]
        remarks = [self._slower(), _why("Left dense", dense), _why("Filtered in place", noted)]
        return list(filter(None, remarks))

    def _totals(self) -> str:
        """One sentence: how many layers changed, their size, and their losses in squared norm."""
        plan = self.plan
        head = f"{len(plan.compressed)} of {len(plan)} layers compressed"
        if in_place := len(plan.in_place):
            head += f", {in_place} filtered in place"
        if self.of_update:
            head = (
                f"updates of {len(plan.changed)} of {len(plan)} layers filtered, and all stay dense"
            )
        elif plan.compressed:
            head += (
                f": {plan.bits_per_weight:.3g} bits a weight, {plan.size_ratio:.2f} of the dense "
                "size"
            )
        if plan.changed:
            head += f", energy dropped {tables.percent(plan.dropped_energy)}"
            if any(layer.rounds for layer in plan):
                error = plan.rounding_error
                text = "not measured" if error is None else tables.percent(error)
                head += f", energy changed by rounding {text}"
            if plan.parameter_share < 1:
                head += f", {tables.percent(plan.parameter_share)} of the layers' parameters left"
            if self.latency is not None:
                head += f", {self.latency:.2g} times the dense time"
        return head

    def _slower(self) -> str:
        """The warning about layers that take longer than before; empty if none does."""
        measured = [layer for layer in self.plan.compressed if layer.latency is not None]
        slower = [layer for layer in measured if (layer.latency or 0.0) > 1.0]
        if not slower:
            return ""
        worst = max(slower, key=lambda layer: layer.latency or 0.0)
        return (
            f"Slower than dense: {len(slower)} of {len(measured)} measured layers, up to "
            f"{worst.latency:.2f} times ({tables.one_line(worst.name)}). For these layers, "
            "compression saves memory, not time."
        )

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table: for each layer, a dict from column to value."""
        return [_row(layer) for layer in self.plan]

    def table(self) -> str:
        """Plain text: one line per layer, then the results of `explain` and `summary`."""
        rows = tables.aligned_table(self.rows())
        return "\n\n".join(filter(None, [rows, self.explain(), self.summary()]))

    def explain(self) -> str:
        """What each verdict on a spectrum means and what to do about it; see `LayerPlan.phase`."""
        return verdicts.footnotes(layer.phase for layer in self.plan)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values: totals, and the plan for `CompressionPlan.from_dict` to read."""
        plan = self.plan
        totals = {
            "layers": len(plan),
            "compressed": len(plan.compressed),
            "bits_per_weight": plan.bits_per_weight,
            "size_ratio": plan.size_ratio,
            "dropped_energy": plan.dropped_energy,
            "rounding_error": plan.rounding_error,
            "file": self.sizes.file,
            "covered": self.covered,
            "parameter_share": plan.parameter_share,
            "latency": self.latency,
        }
        return records.plain({"totals": totals, "layers": plan.to_dict()})

    def to_json(self, path: str | Path | None = None) -> str:
        """The result of `to_dict` as strict JSON, which has no nan and no infinity.

        Args:
            path: The file to write, with the ending `.json`; None writes no file.

        Returns:
            The text.
        """
        return records.written(records.json_text(self.to_dict(), indent=2), path, kinds=(".json",))

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows of the table as comma-separated values, in full precision.

        Args:
            path: The file to write, with the ending `.csv`; None writes no file.

        Returns:
            The text.
        """
        return records.written(tables.csv_text(self.rows()), path, kinds=(".csv",))

    def to_html(self, path: str | Path | None = None, *, title: str = "Compression report") -> str:
        """One HTML page that needs no network and no other file.

        The page shows sizes before and after, and a table of the layers that the reader can sort
        and filter. The page says what happened to each layer, and shows the spectrum (the squared
        singular values) of its weight if `spectra` holds it.

        Args:
            path: The file to write, with the ending `.html`; None writes no file.
            title: Heading of the page, such as the name of the model.

        Returns:
            The text of the page.
        """
        summary = "\n".join([self._totals(), *self._remarks()])
        facts = self.sizes.facts(self.plan)
        content = compression_content(self.plan, self.spectra or (), summary, facts)
        return records.written(page_text(content, title=title), path, kinds=PAGES)

    def plot_overview(self, *, dark: bool = False) -> Figure:
        """Draw rank, bits, dropped energy and, if measured, time over the depth of the model.

        Each kind of layer has a line. The dropped energy is the lost share of the squared norm.

        Args:
            dark: Draw on a dark background.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the report has no layers.
        """
        from hf_rmt.report.figures.plots import depth_figure

        plan = self.plan
        panels: dict[str, Sequence[float]] = {
            "rank\n(directions)": [p.rank if p.compressed else NAN for p in plan],
            "bits per\nweight": [p.bits_per_weight for p in plan],
            "energy dropped\n(fraction)": [_share(p.lost_energy) for p in plan],
        }
        if plan.changed and not plan.compressed:
            del panels["rank\n(directions)"]
        if self.latency is not None:
            panels["time / dense\ntime"] = [NAN if p.latency is None else p.latency for p in plan]
        return depth_figure(
            [layer.name for layer in plan],
            panels,
            hollow=[not layer.compressed for layer in plan],
            hollow_label=STAYS_DENSE,
            dark=dark,
        )

    def save(self, folder: str | Path) -> None:
        """Write tables, JSON, a page and figures into a folder, and `spectra` into a subfolder.

        The texts are written first, so they exist even if the figures fail because matplotlib is
        missing.

        Args:
            folder: The folder to write to; it is made if it does not exist.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        target = save_report(self, folder)
        if self.spectra is not None:
            self.spectra.save(target / "spectra")


def _why(state: str, layers: Sequence[LayerPlan]) -> str:
    """A line that counts the layers in a state by their reason; empty if there are no layers.

    For example, `Left dense: 3 (all weights are zero); 1 (no reason given)`.
    """
    if not layers:
        return ""
    reasons = Counter(layer.reason or "no reason given" for layer in layers)
    return f"{state}: " + "; ".join(f"{n} ({why})" for why, n in reasons.most_common())


def _row(layer: LayerPlan) -> dict[str, Any]:
    kept = layer.compressed
    return {
        "name": layer.name,
        "shape": tables.shape_text(layer.shape),
        "state": layer.state,
        "phase": layer.phase or None,
        "rank": layer.rank if kept else None,
        "noise": layer.noise if kept else None,
        "bits_per_weight": layer.bits_per_weight,
        "of_dense_size": layer.bits / layer.dense_bits if kept and layer.dense_bits else None,
        "signal_energy": tables.Share(layer.signal_energy),
        "dropped_energy": _share(layer.lost_energy),
        "rounding_error": _share(layer.rounding_error),
        "of_dense_parameters": layer.parameter_share if layer.parameter_share < 1 else None,
        "of_dense_time": layer.latency,
        "notes": layer.reason,
    }


def _share(value: float | None) -> tables.Share:
    """A share of the squared norm as a cell of a table; nan if it is unknown."""
    return tables.Share(NAN if value is None else value)
