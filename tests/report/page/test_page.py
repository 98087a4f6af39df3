"""The HTML page: what it holds, and what it does in a real browser."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hf_rmt.plan import CompressionPlan, Outcome
from hf_rmt.report import CompressionReport, SpectralReport
from hf_rmt.report.sizes import Sizes
from hf_rmt.report.verdicts import VERDICTS
from hf_rmt.spectra import Phase
from tests.report.browser import Browser, missing
from tests.report.samples import layer_plan, make_cut, make_degenerate, make_fit, spectral_report

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>&amp;$x"
MOST_BYTES, MOST_SECONDS = 2_000_000, 2.0


def content_of(text):
    return json.loads(re.search(r'id="content">(.*?)</script>', text, re.S)[1])


def many_layers(count=400):
    fits = [make_fit(spikes=(90.0, 40.0, 30.0)), make_fit(phase=Phase.RANDOM), make_cut()]
    kinds = ("attention.q", "attention.k", "attention.v", "mlp.up", "mlp.down")
    names = [f"model.layers.{k // 5}.{kinds[k % 5]}" for k in range(count)]
    return spectral_report({name: fits[k % 3] for k, name in enumerate(names)})


@pytest.fixture(scope="module")
def browser():
    if why := missing():
        pytest.skip(why)
    with Browser() as opened:
        opened.view(1280, 900)
        opened.requests()
        yield opened


@pytest.fixture
def page(browser, report, tmp_path):
    report.to_html(tmp_path / "report.html", title="A model")
    browser.view(1280, 900)
    browser.open(tmp_path / "report.html")
    return browser


def names(browser):
    script = "return [...document.querySelectorAll('tr.layer th')].map(x => x.textContent)"
    return browser.run(script)


def drawn_spikes(browser):
    """Number of spikes in the open layer's figure, once its law is drawn."""
    time.sleep(0.2)  # a frame after the row opened the widths are known
    count = "return document.querySelectorAll(`tr.opened .figure ${arguments[0]}`).length"
    assert browser.run(count, "path.law") == 1
    return browser.run(count, "line.spike")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_a_page_is_complete_and_loads_nothing(report, tmp_path):
    text = report.to_html(tmp_path / "x.html", title="<b>&")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == text
    tags = Tags()
    tags.feed(text)
    assert not {"link", "img", "iframe"} & {tag for tag, _ in tags.found}
    assert not any({"src", "data"} & set(attributes) for _, attributes in tags.found)
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert "default-src 'none'" in text


def test_content_holds_what_the_reports_hold(report):
    content = content_of(report.to_html())
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in report]
    first = content["layers"][0]
    fit = report["encoder.layer.0.key"].fit
    assert (first["spikes"], first["verdict"], first["block"]) == (2, "bulk+spikes", 0)
    assert first["energy"] == pytest.approx(fit.signal_energy, rel=1e-3)
    spectrum = first["spectrum"]
    assert sum(spectrum["noise"]) + sum(spectrum["signal"]) + spectrum["beyond"] == 100
    assert spectrum["spikes"] == pytest.approx(np.sqrt(fit.eigenvalues[:2]), rel=1e-3)
    edges = np.sqrt(fit.noise_law.bulk_edges)
    np.testing.assert_allclose(spectrum["edges"], edges, rtol=1e-3)
    assert content["layers"][-1]["spectrum"] is None
    assert {entry["name"]: entry["text"] for entry in content["verdicts"]} == {
        str(phase): VERDICTS[phase] for phase in {layer.fit.phase for layer in report}
    }


ENERGIES = {
    "whole": ({"noise": "drop", "signal_energy": 0.3, "dropped_energy": 0.7}, "30 % is stored"),
    "above": ({"noise": "drop", "signal_energy": 0.494, "dropped_energy": 0.663}, "by 66.3 %"),
    "below": ({"noise": "drop", "signal_energy": 0.07, "dropped_energy": 0.89}, "by 89 %"),
    "packed": ({"noise": "int8", "signal_energy": 0.3, "rounding_error": 0.02}, "changes 2 %"),
    "in place": ({"outcome": Outcome.REWRITTEN, "dropped_energy": 0.25}, "by 25 %"),
    "ternary": ({"kind": "ternary", "noise": "drop", "dropped_energy": 0.2}, "by 20 %"),
    "kept": ({"outcome": Outcome.KEPT}, ""),
}


@pytest.mark.parametrize("case", ENERGIES)
def test_shares_are_shown_only_if_they_sum_to_one(case):
    changes, said = ENERGIES[case]
    plan = CompressionPlan((layer_plan(**{"signal_energy": 0.0, **changes}),))
    (layer,) = content_of(CompressionReport(plan).to_html())["layers"]
    assert said in layer["energies"]
    assert "(drop)" not in layer["energies"]
    assert bool(layer["energies"]) == (case != "kept")
    assert (layer["shares"] is not None) == (case == "whole")
    if layer["shares"]:
        assert sum(share for _, share in layer["shares"]) == pytest.approx(1)


def hollow_points(figure):
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("_")]
    return {(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)}


@pytest.mark.parametrize("phase", list(Phase))
def test_the_page_and_the_overview_have_the_same_hollow_markers(phase):
    one = make_degenerate(np.zeros(100)) if phase == Phase.DEGENERATE else make_fit(phase=phase)
    report = spectral_report({"layers.0.a": one, "layers.1.a": make_fit()})
    content = content_of(report.to_html())
    drawn = {x for x, _ in hollow_points(report.plot_overview())}
    assert {float(x["block"]) for x in content["layers"] if x["hollow"]} == drawn
    legend = [text.get_text() for text in report.plot_overview().legends[0].get_texts()]
    assert (content["hollow"] in legend) == bool(drawn)


def test_the_page_of_a_plan_has_the_hollow_markers_of_its_overview(plan):
    report = CompressionReport(plan)
    content = content_of(report.to_html())
    assert [layer["hollow"] for layer in content["layers"]] == [False, False, True]
    legend = [text.get_text() for text in report.plot_overview().legends[0].get_texts()]
    assert content["hollow"] in legend


@pytest.mark.parametrize("values", [np.zeros(100), np.full(100, np.nan)])
def test_spectra_without_a_picture_are_left_out(values):
    text = spectral_report({"a": make_degenerate(values)}).to_html()
    assert content_of(text)["layers"][0]["spectrum"] is None


def test_content_of_a_compression(plan, report):
    plan = CompressionPlan((replace(plan.layers[0], rounding_error=2e-5), *plan.layers[1:]))
    sizes = Sizes(file=(100, 50), model_parameters=80_000)
    content = content_of(CompressionReport(plan, report, sizes).to_html())
    facts = ["weights in the file", "compressed layers", "share of the model covered"]
    assert [name for name, _, _ in content["facts"]] == facts
    first, _, dense = content["layers"]
    assert (first["before"], first["bits"], first["rounding"]) == (32.0, 10.0, 2e-5)
    assert (dense["state"], dense["bits"], dense["rank"]) == ("dense", 32.0, None)


def test_names_can_hold_anything(report, browser, tmp_path):
    named = SpectralReport((replace(report.layers[0], name=EVIL), *report.layers[1:]))
    text = named.to_html(tmp_path / "x.html", title=EVIL)
    assert content_of(text)["layers"][0]["name"] == EVIL
    browser.open(tmp_path / "x.html")
    assert names(browser)[0] == EVIL
    assert browser.run("return document.title") == EVIL
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.errors() == []


def test_sizes_and_time_of_400_layers(browser, tmp_path):
    text = many_layers().to_html(tmp_path / "x.html")
    browser.requests()
    assert len(text.encode()) < MOST_BYTES
    seconds = min(browser.open(tmp_path / "x.html") for _ in range(3))
    assert len(names(browser)) == 400
    assert seconds < MOST_SECONDS
    assert browser.requests() == 3 * [(tmp_path / "x.html").as_uri()]


def test_heads_sort_and_missing_values_come_last(page):
    click = "document.querySelector(`th[data-key=${arguments[0]}] button`).click()"
    page.run(click, "distance")
    assert names(page)[-1] == "head"
    page.run(click, "spikes")
    assert names(page)[-1] == "encoder.layer.0.mlp"
    page.run(click, "spikes")
    assert names(page)[0] == "encoder.layer.0.mlp"
    state = "return document.querySelector('th[data-key=spikes]').ariaSort"
    assert page.run(state) == "descending"


@pytest.mark.parametrize(
    ("control", "value", "left"),
    [
        ("search", "MLP", ["encoder.layer.0.mlp", "encoder.layer.1.mlp"]),
        ("kind", "key", ["encoder.layer.0.key", "encoder.layer.1.key"]),
        ("verdict", "random", ["encoder.layer.1.key"]),
        ("block-from", "1", ["encoder.layer.1.key", "encoder.layer.1.mlp"]),
        ("spikes-from", "3", ["encoder.layer.0.mlp"]),
        ("energy-from", "50", ["encoder.layer.0.mlp"]),
        ("distance-to", "0.001", []),
    ],
)
def test_filters(page, control, value, left):
    script = """
        const control = document.getElementById("filters").elements[arguments[0]];
        control.value = arguments[1];
        control.dispatchEvent(new Event("input", {bubbles: true}));"""
    page.run(script, control, value)
    assert names(page) == left
    assert page.run("return document.getElementById('count').textContent").startswith(
        f"{len(left)} of 5"
    )


def test_the_keyboard_opens_a_layer_walks_and_closes(page):
    page.run("document.querySelector('tr.layer button').focus()")
    page.keys("Enter", "ArrowDown", "ArrowUp")
    assert drawn_spikes(page) == 2
    page.keys("ArrowDown", "Enter")
    opened = "return document.querySelector('tr.opened').previousSibling.querySelector('th')"
    assert page.run(f"{opened}.textContent") == "encoder.layer.0.mlp"
    assert page.run(f"{opened}.firstChild.ariaExpanded") == "true"
    assert drawn_spikes(page) == 0  # all three lie further out
    shown = page.run("return document.querySelector('tr.opened .figure').textContent")
    assert "3 more to the right, up to 30" in shown
    sentence = page.run("return document.querySelector('tr.opened .sentence').textContent")
    assert sentence == f"bulk+spikes: {VERDICTS[Phase.SPIKED]}"
    page.keys("Escape")
    assert page.run("return document.querySelector('tr.opened')") is None
    assert page.run("return document.activeElement.textContent") == "encoder.layer.0.mlp"
    assert page.errors() == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_width_and_follows_the_colour_scheme(
    browser, plan, report, tmp_path, width, dark
):
    layers = (layer_plan(report.layers[0].name), *plan.layers)
    CompressionReport(CompressionPlan(layers), report).to_html(tmp_path / "x.html")
    browser.view(width, 844, dark=dark)
    browser.open(tmp_path / "x.html")
    browser.run("document.querySelector('tr.layer button').click()")
    deadline = time.monotonic() + 10  # a busy machine opens the row later
    wide = "return (document.querySelector('tr.opened svg') || {}).clientWidth || 0"
    while browser.run(wide) <= 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 128) == dark
    figure = browser.run("return document.querySelector('tr.opened svg').clientWidth")
    assert 200 < figure <= width
    assert browser.errors() == []
