"""report.html and the notebook view: nothing from outside, and nothing in a token that runs."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from sinkscope import figures
from sinkscope.figures.plotly_renderer import page_text, thinned
from sinkscope.glossary import DEFINITIONS
from sinkscope.reporting.document import Report
from sinkscope.reporting.markup import script_json
from sinkscope.reporting.page import description, page
from tests.reporting import naive_softmax
from tests.support import naive_record, naive_streaming

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync",
]  # fmt: skip


FOREIGN = """() => {
  const add = (name, set) => document.body.appendChild(Object.assign(document.createElement(name), set));
  add("script", { textContent: "window.ran = 'a script of its own'" });
  add("div", { innerHTML: "<img src=x onerror=\\"window.ran = 'a handler'\\">" });
  add("img", { src: "https://example.invalid/x.png" });
  add("base", { href: "https://example.invalid/" });
  add("form", { action: "https://example.invalid/", method: "post" }).submit();
  return fetch("https://example.invalid/").catch(() => null).then(() => new Promise((done) => setTimeout(done, 300)));
}"""


PANELS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => Object.keys(plot.layout)
    .filter(key => /^xaxis[0-9]*$/.test(key))
    .map(key => [...plot.layout[key].domain, ...plot.layout[key.replace('x', 'y')].domain])
    .sort((a, b) => b[3] - a[3]))"""


@pytest.fixture(scope="module")
def report() -> Report:
    return Report({"text": naive_record.record(), **naive_streaming.records(), **naive_softmax.records()})


@pytest.fixture(scope="module")
def html(report) -> str:
    files = ["figures/norms.pdf", "tables/summary.csv", "records/text.nc"]
    return page(report.content, files)


def without_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.S)


@pytest.mark.slow
def test_nothing_is_loaded_from_outside(html):
    text = without_scripts(html)
    assert not re.search(r"""(src|href|action|poster|data)\s*=\s*["']?\s*(https?:|//)""", text)
    assert not re.search(r"@import|url\(\s*['\"]?(https?:|//)", text)
    assert not re.search(r"<(script|link|iframe|object|embed)[^>]+(src|href)=", html.split("<script", 1)[0])
    assert all("src=" not in tag for tag in re.findall(r"<script[^>]*>", text + html[-3000:]))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert not re.search(r"https?:|script-src[^;]*unsafe|unsafe-eval|\*", policy)


@pytest.mark.slow
def test_plotly_is_in_the_page_once(html):
    assert html.count("plotly.js v") == 1
    assert html.count('id="plotly"') == 1


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_no_token_or_name_becomes_markup(html):
    text = without_scripts(html)
    assert "<img src=x" not in text and "<b>model" not in text
    assert "&lt;img" in text and "evil/&lt;b&gt;model" in text
    parser = Collector()
    parser.feed(text)
    assert not any(name.startswith("on") for _, attributes in parser.tags for name in attributes)
    images = [attributes["src"] for tag, attributes in parser.tags if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert sum(tag == "script" for tag, _ in parser.tags) == 0


def test_the_data_in_the_page_cannot_end_its_script(html):
    held = re.search(r'id="descriptions">(.*?)</script>', html, re.S)[1]
    assert "<" not in held
    described = json.loads(held)
    hover = described["received_by_position"]["data"][1]["customdata"]
    assert hover[1] == "position 1: &lt;img␣src=x␣onerror=alert(1)&gt;"
    assert hover[2].startswith("position 2: &lt;/script&gt;")
    assert json.loads(script_json({"a": "</script><!-- &amp;"})) == {"a": "</script><!-- &amp;"}


def drawn(name, record):
    return figures.plotly_figure(getattr(figures, name).describe(record))


def test_hover_texts_are_text_to_plotly():
    assert page_text("<b>bold</b>&lt;") == "&lt;b&gt;bold&lt;/b&gt;&amp;lt;"


@pytest.mark.slow
def test_every_interactive_figure_is_valid_plotly_with_named_axes(report):
    content = Report({**report.records, "short": naive_record.record()}).content
    described = {name: description(content.items[name], content.source(name)) for name in content.figures}
    assert all(described.values())
    for made in described.values():
        figure = go.Figure(uncoloured(made))
        across, up = [*figure.select_xaxes()], [*figure.select_yaxes()]
        assert any(axis.title.text for axis in across) and any(axis.title.text or axis.ticktext for axis in up)


def uncoloured(value, key=""):
    if isinstance(value, dict):
        return {name: uncoloured(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [uncoloured(each) for each in value]
    return "#000000" if key in ("color", "fillcolor") and str(value).startswith("@") else value


def test_the_interactive_figures_hold_the_numbers_of_the_printed_ones(report):
    record, maps = report.records["text"], naive_record.maps()
    heat = drawn("sink_mass_heatmap", record)["data"][0]["z"]
    np.testing.assert_allclose(heat, maps[:, :, :, 1:, 0].mean(axis=(0, 3)), rtol=1e-4)
    by_layer = {trace.get("name"): trace for trace in drawn("mass_by_layer", record)["data"]}
    np.testing.assert_allclose(by_layer["first token"]["y"], maps[:, :, :, 1:, 0].mean(axis=(0, 2, 3)), rtol=1e-4)
    norm = {trace.get("name"): trace for trace in drawn("norms", record)["data"] if trace.get("yaxis") == "y2"}
    values = record["value_norm"].values
    np.testing.assert_allclose(norm["first token"]["y"], values[..., 0].mean(axis=(0, 2)), rtol=1e-4)


def test_the_interactive_streaming_figures_hold_the_numbers_of_their_records(report):
    curve = report.records["perplexity"]
    lines = {trace.get("name"): trace for trace in drawn("log_perplexity", curve)["data"]}
    nll = curve["nll"].values[:, 0].astype(float)
    expected = [np.nanmean(nll[1, start : start + 64]) for start in range(0, 640, 64)]
    np.testing.assert_allclose(lines["window 64"]["y"], expected, rtol=1e-4)
    assert "recompute 64 (sampled)" in lines and lines["recompute 64 (sampled)"]["mode"] == "markers"
    table = naive_streaming.ablation()
    bars = drawn("ablation", report.records["ablation"])["data"][0]
    np.testing.assert_allclose(bars["y"], table["ppl"], rtol=1e-4)
    np.testing.assert_allclose(bars["error_y"]["array"], table["high"] - table["ppl"], rtol=1e-4)
    np.testing.assert_allclose(bars["error_y"]["arrayminus"], table["ppl"] - table["low"], rtol=1e-4)
    table = naive_streaming.decode()
    for trace in drawn("decode_cost", report.records["decode"])["data"]:
        own = table[table["policy"] == trace["name"]]
        column = own["kv_bytes"] / 2**20 if trace.get("yaxis") == "y2" else own["milliseconds"]
        np.testing.assert_allclose(trace["y"], column, rtol=1e-4)


def test_every_streaming_caption_says_which_policy_is_which(report, html):
    for name in ("log_perplexity", "ablation", "decode_cost"):
        meaning = report.content.items[name].meaning
        assert "window" in meaning.lower() and "re-comput" in meaning
    text = without_scripts(html)
    for words in ("is not that window", "not re-computation", "cpu, 2 threads", "quartiles"):
        assert words in text


def test_long_texts_keep_their_beginning_and_their_peaks():
    values = np.random.default_rng(0).random(50_000)
    values[[700, 30_000]] = 5
    place = thinned(values)
    assert len(place) <= 4096 and {700, 30_000} <= set(place) and list(place[:512]) == list(range(512))


def test_the_page_states_the_headline_the_definitions_and_the_files(report, html):
    text = without_scripts(html)
    assert report.headline.replace(">", "&gt;") in text
    for name in report.figures:
        assert report.content.items[name].title in text
    for word in ('href="figures/norms.pdf"', 'href="tables/summary.csv"', "Report.open", "uniform null"):
        assert word in text


@pytest.mark.slow
def test_the_notebook_view_is_html_without_script_and_plain_text(report):
    bundle = report._repr_mimebundle_()
    assert report.headline in bundle["text/plain"]
    shown = bundle["text/html"]
    assert "<script" not in shown and "<img src=x" not in shown
    assert shown.count("data:image/png;base64,") == 3


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it_asks_the_network_nothing_and_runs_no_token(html, tmp_path, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    place = tmp_path / "report.html"
    place.write_text(html, encoding="utf-8")
    asked, said = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.goto(place.as_uri())
        tab.wait_for_selector("html[data-drawn=yes]", state="attached", timeout=60_000)  # runs no script in the page
        plots = tab.evaluate("document.querySelectorAll('.js-plotly-plot .main-svg').length")
        names = tab.evaluate("[...document.querySelectorAll('.textpoint text')].map(t => t.textContent)")
        tab.evaluate("Plotly.Fx.hover('plot-received_by_position', [{curveNumber: 1, pointNumber: 2}])")
        hovered = tab.evaluate("[...document.querySelectorAll('.hovertext')].map(t => t.textContent).join()")
        wide = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert asked == [place.as_uri()]
    assert said == []
    assert plots >= 16
    assert any(name.startswith("“<img␣src=x␣on…”") for name in names)
    assert "</script><script>alert(1)</script>" in hovered
    assert wide <= 0


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_what_got_into_the_page_all_the_same_runs_nothing_and_reaches_nobody(html, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    place = tmp_path / "report.html"
    place.write_text(
        html.replace("</h1>", "</h1><script>window.ran = 'a script in the page'</script>"), encoding="utf-8"
    )
    reached, said = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_page()
        tab.on("response", lambda response: reached.append(response.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(place.as_uri())
        tab.wait_for_selector("html[data-drawn=yes]", state="attached", timeout=60_000)
        tab.evaluate(FOREIGN)
        ran, base = tab.evaluate("[window.ran || '', document.baseURI]")
        browser.close()
    assert (ran, base) == ("", place.as_uri())
    assert reached in ([], [place.as_uri()])
    for rule in ("script-src", "img-src", "base-uri", "form-action", "default-src"):  # the last is what fetch asks
        assert any("Content Security Policy" in words and rule in words for words in said), (rule, said)


def test_each_word_is_defined_once_and_the_source_line_stands_once_in_a_section_unless_it_changes(html, report):
    shown = without_scripts(html)
    for word, told in DEFINITIONS.items():
        assert shown.count(f"<dt>{word}</dt><dd>{told}.</dd>") == 1
    for part in shown.split('<h2 class="part">')[1:]:
        lines = re.findall(r'<p class="files">.*?<span>(.*?)</span>', part.split('<section id="tables">')[0], re.S)
        assert lines and all(one != other for one, other in itertools.pairwise(lines))


def test_no_number_that_is_shown_has_a_hyphen_for_a_minus_sign(html):
    shown = re.sub(r"<style>.*?</style>", "", without_scripts(html), flags=re.S)
    assert "−" in shown and re.findall(r"[\s>(\[]-\d[\d.,]*%?[\s<)\],;]", shown) == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_on_a_phone_panels_stand_one_below_the_other_and_nothing_overflows(html, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    place = tmp_path / "report.html"
    place.write_text(html, encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto(place.as_uri())
        tab.wait_for_selector("html[data-drawn=yes]", state="attached", timeout=60_000)
        panels = tab.evaluate(PANELS)
        wide = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert wide <= 0 and any(len(each) > 1 for each in panels)
    for each in panels:
        for (left, right, bottom, _), (_, _, _, under) in itertools.pairwise(each):
            assert right - left > 0.6 and under < bottom  # square maps, which stand so already, are narrower
