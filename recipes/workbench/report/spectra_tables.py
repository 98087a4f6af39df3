"""The tables of `spectra.py`: how far the laws of four methods are from the measured spectra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hf_rmt.report.tables import markdown_table

METHODS = ("PDB", "PDB, published", "PUB, BEMA", "PUB, kernel")
PUB = METHODS[2:]
ORDERS = (1, 2, 3)
POPULATIONS = {
    "own noise": "law of the bulk against the noise eigenvalues that the method itself finds",
    "PDB's noise": "law of the bulk against the noise eigenvalues that PDB finds",
    "BEMA's noise": "law of the bulk against the noise eigenvalues that BEMA finds",
    "whole": "law with its recovered spikes against all eigenvalues",
    "as published": "law of the bulk without spikes against all eigenvalues, as in the published "
    "tables",
}
BULKS = tuple(POPULATIONS)[:3]
FINDERS = {"PDB's noise": "PDB", "BEMA's noise": "PUB, BEMA"}
"""For these sets of eigenvalues, the method that finds the noise for all methods."""
PUBLISHED_WAY = "as published"
CLEAR = 0.75
"""A quantity separates two methods if one of them is closer to the measured value on at least this
share of the layers."""
PUBLISHED_MOMENTS = {
    "bert": {
        "PUB, BEMA": (0.59, 0.69, 1.02),
        "PUB, kernel": (0.56, 0.63, 0.88),
        "PDB, published": (0.67, 1.18, 2.78),
        "measured": (0.71, 1.38, 3.95),
    },
    "t5": {
        "PUB, BEMA": (0.67, 0.90, 1.51),
        "PUB, kernel": (0.53, 0.56, 0.74),
        "PDB, published": (0.77, 1.55, 4.17),
        "measured": (0.72, 1.83, 5.35),
    },
}
"""The moments gamma_1 to gamma_3 of table 5 in Wu, Zhu & Li, ICML 2025."""
SETTINGS = {"bert": "BERT on SciTail", "t5": "T5-base on RTE"}
Rows = Sequence[Mapping[str, Any]]


def distances(rows: Rows, population: str) -> dict[str, np.ndarray]:
    """The Kolmogorov distances of each method, shape (layers,), for one of `POPULATIONS`."""
    return {
        method: np.array([row["distance"] for row in part])
        for method, part in _by_method(rows, population)
    }


def errors(rows: Rows, population: str) -> dict[str, np.ndarray]:
    """The relative errors of each method's moments, with their signs, shape (layers, 3)."""
    return {
        method: np.array(
            [[row[f"gamma{k}"] / row[f"gamma{k}_measured"] - 1 for k in ORDERS] for row in part]
        )
        for method, part in _by_method(rows, population)
    }


def _by_method(rows: Rows, population: str) -> Iterator[tuple[str, Rows]]:
    for method in METHODS:
        yield (
            method,
            [row for row in rows if (row["method"], row["population"]) == (method, population)],
        )


def quantities(rows: Rows, population: str) -> dict[str, dict[str, np.ndarray]]:
    """Quantities for which smaller is better, by name and then by method, shape (layers,)."""
    wrong = {method: np.abs(each) for method, each in errors(rows, population).items()}
    found = {"distance": distances(rows, population)} if population in BULKS else {}
    for k in ORDERS:
        found[f"gamma_{k}"] = {method: each[:, k - 1] for method, each in wrong.items()}
    return found | {"gamma_1..3, mean": {method: each.mean(1) for method, each in wrong.items()}}


def summary(rows: Rows) -> list[dict[str, Any]]:
    """For each of `POPULATIONS` and each quantity, the median over the layers by method.

    Each row also has the share of layers on which PDB is closer than the other methods.
    """
    lines = []
    for population in POPULATIONS:
        for name, values in quantities(rows, population).items():
            ours, best = values["PDB"], np.minimum(*(values[method] for method in PUB))
            shares = {
                f"closer_than_{method}": float(np.mean(ours < values[method])) for method in PUB
            }
            medians = {
                f"median_{method}": float(np.median(each)) for method, each in values.items()
            }
            line = {"population": population, "quantity": name, **medians, **shares}
            lines.append(line | {"closer_than_both": float(np.mean(ours < best))})
    return lines


def verdict(line: Mapping[str, Any]) -> str:
    """Say whether a quantity shows that PDB is closer, that PUB is closer, or neither of them."""
    shares = [line[f"closer_than_{method}"] for method in PUB]
    if min(shares) >= CLEAR:
        return "PDB closer"
    return "PUB closer" if max(shares) <= 1 - CLEAR else "does not separate"


def markdown(
    rows: Rows, *, title: str, kind: str, shown: Sequence[str], left_out: Mapping[str, str]
) -> str:
    """All tables, each with an explanation."""
    count = len({row["layer"] for row in rows})
    parts = [
        f"# Laws of the noise: {title}",
        f"{count} weights, {len(left_out)} left out",
        "\n".join(f"- {name}: {reason}" for name, reason in left_out.items()),
        *_distance_part(rows),
        *_separation_part(rows),
        *_moments_part(rows, kind),
        *_layers_part(rows, kind, shown),
        *_lost_part(rows),
        *_setting_part(title, kind),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _distance_part(rows: Rows) -> list[str]:
    table = []
    for method in METHODS:
        line: dict[str, Any] = {"method": method}
        for population in BULKS:
            middle, high = np.quantile(distances(rows, population)[method], [0.5, 0.9])
            line |= {population: f"{middle:.4f} ({high:.3f})"}
        table.append(line)
    return [
        "## Kolmogorov distance of the bulk",
        markdown_table(table),
        "Median over the layers (90 % of them lie below the number in brackets). A method that "
        "calls more eigenvalues signal has less noise to describe. So the last two columns "
        "compare all laws with the same eigenvalues. There a law is worse if its noise reaches "
        "further.",
    ]


def _separation_part(rows: Rows) -> list[str]:
    lines = summary(rows)
    table = [
        {
            "population": line["population"],
            "quantity": line["quantity"],
            **{method: line[f"median_{method}"] for method in ("PDB", *PUB)},
            "than BEMA": _percent(line["closer_than_PUB, BEMA"]),
            "than kernel": _percent(line["closer_than_PUB, kernel"]),
            "than both": _percent(line["closer_than_both"]),
            "verdict": verdict(line),
        }
        for line in lines
    ]
    groups = {
        word: [
            f"{line['quantity']} ({line['population']})" for line in lines if verdict(line) == word
        ]
        for word in ("PDB closer", "PUB closer", "does not separate")
    }
    said = [f"- {word}: {'; '.join(names) or 'nothing'}." for word, names in groups.items()]
    return [
        "## What separates the methods, and what does not",
        "The table shows the median over the layers of the distance, or of the relative error of "
        "a moment, and the share of the layers on which PDB is closer to the measured value. A "
        f"quantity separates the methods if this share is at least {100 * CLEAR:g} % against both "
        f"forms of PUB, or at most {100 - 100 * CLEAR:g} % against both.",
        markdown_table(table),
        "\n".join(said),
        "Over all eigenvalues the spikes dominate the moments, and every method recovers spikes "
        "from their own eigenvalues. Only the bulk shows which law the noise follows.",
    ]


def _moments_part(rows: Rows, kind: str) -> list[str]:
    published = PUBLISHED_MOMENTS.get(kind, {})
    table = []
    for population in POPULATIONS:
        for method, each in errors(rows, population).items():
            mean, middle = 100 * np.abs(each).mean(0), 100 * np.median(np.abs(each), axis=0)
            line: dict[str, Any] = {"population": population, "method": method}
            line |= {f"gamma_{k}": f"{mean[k - 1]:.1f} ({middle[k - 1]:.1f})" for k in ORDERS}
            table.append(
                line | _published_errors(published, method if population == PUBLISHED_WAY else "")
            )
    notes = [f"- {population}: {meaning}" for population, meaning in POPULATIONS.items()]
    return [
        "## Relative errors of the moments in percent",
        markdown_table(table),
        "Mean over the layers (median).",
        "\n".join(notes),
    ]


def _published_errors(
    published: Mapping[str, Sequence[float]], method: str
) -> dict[str, str | None]:
    """Relative errors of the published moments in percent; None for methods without them."""
    if not published:
        return {}
    pairs = zip(published.get(method, (None,) * len(ORDERS)), published["measured"], strict=True)
    shares = [None if law is None else f"{100 * abs(law / all_ - 1):.1f}" for law, all_ in pairs]
    return {f"published, gamma_{k}": shares[k - 1] for k in ORDERS}


def _layers_part(rows: Rows, kind: str, shown: Sequence[str]) -> list[str]:
    published = PUBLISHED_MOMENTS.get(kind, {})
    parts = [
        "## Moments of single layers",
        "In units of the weight to the power 2, 4 and 6. Compare the law of the bulk with the "
        "noise that its method finds, and the law with spikes with the last row.",
    ]
    for layer in shown:
        cells = {(row["method"], row["population"]): row for row in rows if row["layer"] == layer}
        every = cells["PDB", "whole"]
        table = []
        for method in METHODS:
            bulk, whole = cells[method, "own noise"], cells[method, "whole"]
            line = {"method": method} | _gammas("bulk", bulk) | _gammas("noise", bulk, "_measured")
            line |= _gammas("with spikes", whole) | _published(published, method)
            table.append(line)
        last = {key: None for key in table[0]} | {"method": "measured, all eigenvalues"}
        last |= _gammas("with spikes", every, "_measured") | _published(published, "measured")
        parts += [f"### {layer}, {every['shape']}", markdown_table([*table, last])]
    return parts


def _gammas(label: str, row: Mapping[str, Any], ending: str = "") -> dict[str, float]:
    return {f"{label}, gamma_{k}": row[f"gamma{k}{ending}"] for k in ORDERS}


def _published(published: Mapping[str, Sequence[float]], method: str) -> dict[str, float | None]:
    """The published moments as separate columns, if there are any."""
    if not published:
        return {}
    values = published.get(method, (None,) * len(ORDERS))
    return {f"published, gamma_{k}": values[k - 1] for k in ORDERS}


def _lost_part(rows: Rows) -> list[str]:
    found = distances(rows, "own noise")
    own = [row for row in rows if (row["method"], row["population"]) == ("PDB", "own noise")]
    table = []
    for place, row in enumerate(own):
        if found["PDB"][place] < min(found[method][place] for method in PUB):
            continue
        spread = row["gamma2_measured"] / row["gamma1_measured"] ** 2 - 1
        table.append(
            {
                "layer": row["layer"],
                **{method: f"{each[place]:.3f}" for method, each in found.items()},
                "spread": f"{spread:.2f}",
                "least": f"{row['aspect_ratio']:.2f}",
            }
        )
    if not table:
        return ["PDB has a smaller distance than both forms of PUB on every layer."]
    return [
        "## Layers on which PDB is not closer than both forms of PUB",
        markdown_table(table),
        "Spread is gamma_2 / gamma_1^2 - 1 of PDB's noise. With independent rows it is at least "
        "p / N for every population. If it is smaller, the matrix is no such noise: its "
        "directions are more equal in size than chance allows, and no law with one or two "
        "variances holds.",
    ]


def _setting_part(title: str, kind: str) -> list[str]:
    if kind not in PUBLISHED_MOMENTS:
        return ["The publication has no table of moments for this kind of model."]
    differences = (
        f"model: {title} here, not trained further; the published one was fine-tuned",
        "layer: the publication does not say which layer its table shows",
        "scale: moments depend on the unit of the weight, relative errors do not",
        "spikes: the published moments of PUB are those of the Marchenko-Pastur law alone with c "
        "= 1 (gamma_2 / gamma_1^2 = 2, gamma_3 / gamma_1^3 = 5 to two digits), and they are "
        "compared with those of all eigenvalues; here this population is called "
        f"`{PUBLISHED_WAY}`, and in it the method with the fewest spikes comes closest, whatever "
        "its law",
        "PDB: the published numbers belong to the published estimator; the row `PDB` has none",
    )
    return [
        f"## What the published numbers are\n\nTable 5 of the publication, {SETTINGS[kind]}:",
        "\n".join(f"- {difference}" for difference in differences),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
