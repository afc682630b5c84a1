"""Page and paper: the same numbers, scales, names and levels, whatever the figure; and figures of one's own."""

from __future__ import annotations

import doctest
import html
import inspect
import json

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from matplotlib.axes import Axes

from sinkscope import figures
from sinkscope.figures import marks
from sinkscope.figures.marks import (
    Axis,
    Bars,
    ColourBar,
    Drawing,
    Image,
    Legend,
    Line,
    Look,
    Panel,
    Points,
    Reference,
    Text,
)
from sinkscope.figures.plotly_renderer import rounded, thinned
from tests.figures.records import RECORDS, view

LOSSLESS = {"rtol": 6e-5, "atol": 1e-12}  # the page has five significant digits


def described(name: str) -> Drawing:
    return getattr(figures, name).describe(RECORDS[name]())


def unescaped(text: str) -> str:
    return html.unescape(text.replace("<br>", "\n"))


def number(axis: str) -> str:
    return axis.removeprefix("x").removeprefix("y")


def on_page(page: dict, panel: int) -> list[dict]:
    """The traces of a panel, without bands and colour bars."""
    mark = "" if panel == 0 else str(panel + 1)
    own = [trace for trace in page["data"] if number(trace.get("xaxis", "x")) == mark]
    return [trace for trace in own if trace.get("line") != {"width": 0} and trace.get("x") != [None]]


def floats(values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def test_every_public_figure_is_described():
    public = {name for name in figures.__all__ if hasattr(getattr(figures, name), "describe")}
    assert public == set(RECORDS) and len(public) == 35


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_page_and_paper_show_the_same_numbers_in_the_same_order(name):
    drawing = described(name)
    paper, page = figures.matplotlib_figure(drawing), figures.plotly_figure(drawing)
    compared = 0
    for at, panel in enumerate(drawing.panels):
        axes, traces = paper.axes[at], iter(on_page(page, at))
        levels = [mark for mark in panel.marks if isinstance(mark, Reference)]
        lines = iter([line for line in axes.lines if line.get_transform() == axes.transData])
        bars, images, texts = iter(axes.containers), iter(axes.images), iter([t for t in axes.texts if t.get_gid()])
        for mark in panel.marks:
            if isinstance(mark, (Line, Points)):
                line, trace = next(lines), next(traces)
                np.testing.assert_allclose(floats(trace["x"]), np.asarray(line.get_xdata(), float), **LOSSLESS)
                np.testing.assert_allclose(floats(trace["y"]), np.asarray(line.get_ydata(), float), **LOSSLESS)
            elif isinstance(mark, Bars):
                drawn, trace = next(bars), next(traces)
                base = trace.get("base", [0] * len(trace["y"]))
                for bar, x, y, low in zip(drawn, trace["x"], floats(trace["y"]), base, strict=True):
                    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(x, abs=1e-6)
                    assert (bar.get_y(), bar.get_height(), bar.get_width()) == pytest.approx((low, y, trace["width"]))
            elif isinstance(mark, Image):
                if mark.picture is not None:
                    np.testing.assert_array_equal(next(images).get_array(), mark.picture)
                    assert next(traces)["type"] == "image"
                cells, trace = np.ma.filled(next(images).get_array(), np.nan), next(traces)
                shown = np.array([floats(row) for row in trace["z"]])
                high = np.inf if mark.bar.high is None else mark.bar.high
                np.testing.assert_allclose(10**shown if mark.bar.log else shown, np.minimum(cells, high), rtol=2e-4)
            elif isinstance(mark, Text):
                assert unescaped(next(traces)["text"][0]).strip("\u2002") == next(texts).get_text()
            else:
                continue
            compared += 1
        assert not list(traces) and not list(lines) and not list(bars) and not list(images) and not list(texts)
        assert len(levels) == len(axes.lines) - sum(isinstance(mark, (Line, Points)) for mark in panel.marks)
    assert compared and len(page["layout"]["shapes"]) == sum(
        isinstance(mark, Reference) for panel in drawing.panels for mark in panel.marks
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_intervals_are_the_same_on_both(name):
    drawing = described(name)
    paper, page = figures.matplotlib_figure(drawing), figures.plotly_figure(drawing)
    bands = iter([trace for trace in page["data"] if trace.get("line") == {"width": 0}])
    for at, panel in enumerate(drawing.panels):
        artists = {each.get_gid(): each for each in paper.axes[at].get_children() if each.get_gid()}
        traces = iter(on_page(page, at))
        for mark in panel.marks:
            if isinstance(mark, (Reference, ColourBar)):
                continue
            if getattr(mark, "picture", None) is not None:
                next(traces)
            trace = next(traces)
            if f"band-{getattr(mark, 'id', '')}" in artists:
                low, high = next(bands), next(bands)
                outline = artists[f"band-{mark.id}"].get_paths()[0].vertices[:, 1]
                assert outline.min() == pytest.approx(np.nanmin(floats(low["y"])), rel=1e-4)
                assert outline.max() == pytest.approx(np.nanmax(floats(high["y"])), rel=1e-4)
            for across, bounds, key in ((1, "interval", "error_y"), (0, "across", "error_x")):
                assert (f"{bounds}-{getattr(mark, 'id', '')}" in artists) == (key in trace)
                if key in trace:
                    middle = floats(trace["yx"[1 - across]])
                    drawn = [piece for piece in artists[f"{bounds}-{mark.id}"].get_segments() if len(piece)]
                    whiskers = np.array([piece[:, across] for piece in drawn])
                    ends = np.stack(
                        [middle - floats(trace[key]["arrayminus"]), middle + floats(trace[key]["array"])], 1
                    )
                    np.testing.assert_allclose(ends[np.isfinite(ends).all(1)], whiskers, rtol=1e-3, atol=1e-6)
    assert not list(bands)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_page_and_paper_have_the_same_scales_limits_labels_titles_and_levels(name):
    drawing = described(name)
    paper, page = figures.matplotlib_figure(drawing), figures.plotly_figure(drawing)
    layout, titles = page["layout"], [unescaped(note["text"]) for note in page["layout"]["annotations"]]
    for at, panel in enumerate(drawing.panels):
        axes, mark = paper.axes[at], "" if at == 0 else str(at + 1)
        for letter, axis in (("x", panel.x), ("y", panel.y)):
            own = layout[f"{letter}axis{mark}"]
            assert own.get("type", "linear") == getattr(axes, f"get_{letter}scale")()
            assert unescaped(own["title"]["text"]) == getattr(axes, f"get_{letter}label")()
            if "range" in own and None not in axis.limits:
                ends = 10 ** np.array(own["range"]) if own.get("type") == "log" else own["range"]
                assert tuple(ends) == pytest.approx(getattr(axes, f"get_{letter}lim")())
            if axis.limits == (0, None):
                assert own["range"][0] == getattr(axes, f"get_{letter}lim")()[0] == 0 < own["range"][1]
            if axis.names is not None:
                shown = [label.get_text() for label in getattr(axes, f"get_{letter}ticklabels")()]
                assert [unescaped(name) for name in own["ticktext"]] == shown or not any(shown)
        if panel.title:
            assert panel.title in titles
        levels = [shape for shape in layout["shapes"] if f"x{mark}" in (shape["xref"], shape["xref"].split()[0])]
        for shape, line in zip(levels, _levels(axes), strict=True):
            place = line.get_xdata() if shape["yref"].endswith("domain") else line.get_ydata()
            assert place[0] == shape["x0" if shape["yref"].endswith("domain") else "y0"]


def _levels(axes: Axes) -> list:
    return [line for line in axes.lines if line.get_transform() != axes.transData]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_page_and_paper_name_the_same_series_once_each(name):
    drawing = described(name)
    paper, page = figures.matplotlib_figure(drawing), figures.plotly_figure(drawing)
    legends = [*paper.legends, *(axes.get_legend() for axes in paper.axes if axes.get_legend())]
    printed = [text.get_text() for legend in legends for text in legend.get_texts()]
    shown = [each for each in (*page["data"], *page["layout"]["shapes"]) if each.get("showlegend")]
    assert sorted(unescaped(each["name"]) for each in shown) == sorted(printed)
    assert page["layout"]["showlegend"] == bool(printed)


@pytest.mark.slow
@pytest.mark.parametrize("themed", [True, False])
@pytest.mark.parametrize("name", RECORDS)
def test_the_page_is_json_and_valid_plotly_with_room_for_every_panel(name, themed):
    page = figures.plotly_figure(described(name), themed=themed)
    text = json.dumps(page, allow_nan=False)
    assert ("@" in text) == themed
    if not themed:
        go.Figure(page)
    domains = [
        (page["layout"][f"xaxis{mark}"]["domain"], page["layout"][f"yaxis{mark}"]["domain"])
        for mark in ["", *map(str, range(2, len(described(name).panels) + 1))]
    ]
    for at, (x, y) in enumerate(domains):
        assert 0 <= x[0] < x[1] <= 1 and 0 <= y[0] < y[1] <= 1 and x[1] - x[0] > 0.15 and y[1] - y[0] > 0.2
        for other_x, other_y in domains[at + 1 :]:
            assert x[1] <= other_x[0] or other_x[1] <= x[0] or y[1] <= other_y[0] or other_y[1] <= y[0]


def test_a_logarithmic_colour_bar_has_its_null_where_it_belongs():
    page = figures.plotly_figure(described("forced_mass"))
    (mark,) = [note for note in page["layout"]["annotations"] if note["text"] == "▸"]
    bar, heat = page["data"][0]["colorbar"], page["data"][0]
    null = np.exp(np.mean([-np.log(1 - 4 / (i + 1)) for i in range(4, 40)]))
    share = (np.log10(null) - heat["zmin"]) / (heat["zmax"] - heat["zmin"])
    assert mark["y"] == pytest.approx(bar["y"] + share * bar["len"], abs=1e-4) and mark["x"] == bar["x"]


@pytest.mark.slow
def test_log_perplexity_is_logarithmic_on_the_page_when_it_is_on_paper():
    assert figures.plotly_figure(described("log_perplexity"))["layout"]["yaxis"]["type"] == "log"
    flat = RECORDS["log_perplexity"]().sel(policy=["dense", "sinks 4+60"])
    assert "type" not in figures.plotly_figure(figures.log_perplexity.describe(flat))["layout"]["yaxis"]


@pytest.mark.slow
def test_layers_and_heads_carry_the_numbers_of_their_coordinates():
    record = RECORDS["norms"]().assign_coords(layer=[3, 7], head=[2, 5])
    for name in ("norms", "mass_by_layer", "massive_activations", "entropy_by_layer"):
        assert figures.plotly_figure(getattr(figures, name).describe(record))["data"][-1]["x"][-1] == 7
    axes = figures.sink_mass_heatmap(record).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["3", "7"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "5"]


@pytest.mark.slow
def test_one_layer_taken_out_of_a_record_is_drawn_as_that_layer():
    record = RECORDS["norms"]().sel(layer=1)
    for name in ("norms", "mass_by_layer", "massive_activations", "entropy_by_layer", "distance_profile"):
        getattr(figures, name)(record)
    assert figures.norms.describe(record).panels[0].marks[0].x.tolist() == [1]


def test_the_keys_a_record_is_about_are_those_of_its_coordinate_whatever_it_says_of_its_probes():
    record = RECORDS["forced_mass"]().assign_coords(evicted_key=[0, 3]).assign_attrs(probes="EvictionEffect(keys=(9,))")
    assert "the first 2 keys go" in figures.forced_mass.describe(record).panels[0].title


def test_a_long_line_keeps_its_beginning_its_peaks_and_its_words():
    values = np.random.default_rng(0).random(50_000)
    values[[700, 30_000]] = 5
    line = Line(
        np.arange(50_000), values, name="long", hover="{text}: {y:.2f}", texts=[f"<{at}>" for at in range(50_000)]
    )
    (trace,) = figures.plotly_figure(Drawing([Panel([line])]))["data"]
    assert len(trace["x"]) <= 4096 and {700, 30_000} <= set(trace["x"]) and trace["x"][:512] == list(range(512))
    assert trace["customdata"][5] == "&lt;5&gt;"
    assert trace["hovertemplate"] == "%{customdata}: %{y:.2f}<extra></extra>"
    assert thinned(values[:9]).tolist() == list(range(9))


@pytest.mark.slow
def test_many_lines_without_a_name_are_thinned_at_even_steps_whatever_their_heights():
    values = np.random.default_rng(0).random((40, 5000))
    page = figures.plotly_figure(Drawing([Panel([Line(np.arange(5000), each) for each in values])]))
    for trace, each in zip(page["data"], values, strict=True):
        x = np.array(trace["x"])
        assert len(x) == 409 and (np.diff(x) > 0).all() and np.ptp(np.diff(x[60:])) <= 1
        assert np.mean(trace["y"]) == pytest.approx(0.5, abs=0.06) and trace["y"][-1] == pytest.approx(
            each[x[-1]], rel=1e-4
        )


def test_numbers_on_the_page_are_rounded_and_what_is_not_finite_is_null():
    assert rounded([1.234567, np.nan, np.inf, 3.0, 123456.0]) == [1.2346, None, None, 3, 123460]
    assert rounded(np.eye(2)) == [[1, 0], [0, 1]]


def test_nothing_a_record_says_becomes_a_tag_or_a_placeholder_on_the_page():
    record = view(policies=("<b>{x}</b>", "plain"))
    page = figures.plotly_figure(figures.explored.describe(record))
    lines = [trace for trace in page["data"] if trace["type"] == "scatter"]
    assert lines[0]["name"] == "&lt;b&gt;{x}&lt;/b&gt;" and lines[0]["hovertemplate"].startswith("&lt;b&gt;(x)&lt;")


@pytest.mark.slow
def test_the_worked_example_of_the_marks_runs():
    assert doctest.testmod(marks).failed == 0 and doctest.testmod(marks).attempted > 5


@pytest.mark.slow
def test_a_figure_of_ones_own_has_its_name_its_signature_its_words_and_both_renderings():
    @figures.figure
    def slope(record: xr.Dataset, steep: float = 2.0) -> Drawing:
        """How steep."""
        line = Line([0, 1], [0, steep], Look.of(1, marker="square"), "slope", "slope", [0, steep - 1], [0, steep + 1])
        panel = Panel(
            [line, Text(1, steep, "top"), Reference(x=0.5, name="half")], Axis("x"), Axis("y", limits=(0, None))
        )
        return Drawing([panel], record.attrs, legend=Legend("a line"))

    record = xr.Dataset(attrs={"model": "own/model"})
    assert slope.__name__ == slope.describe(record).name == slope(record).name == "slope"
    assert list(inspect.signature(slope).parameters) == ["record", "steep"] and slope.__doc__ == "How steep."
    assert slope(record, steep=3).axes[0].lines[0].get_ydata().tolist() == [0, 3]
    assert "own/model" in slope(record).get_supxlabel()
    assert figures.plotly_figure(slope.describe(record, 5))["data"][2]["y"] == [0, 5]
