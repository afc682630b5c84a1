"""What a figure is made of: refused where it is made, shown as it is written."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sinkscope import SinkscopeError, figures
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import matplotlib_figure
from sinkscope.figures.plotly_renderer import plotly_figure

LINE = m.Line([1, 2], [3, 4], name="a line")
REFUSED = {
    "dash": (lambda: m.Look(dash="wavy"), "dash='wavy' is unknown; give one of solid, dash, .*dotted"),
    "marker": (lambda: m.Look(marker="star"), "marker='star' is unknown"),
    "colour": (lambda: m.Look("red"), "colour='red' is unknown; give one of blue, .*grid, or \"#rrggbb\""),
    "colour in short": (lambda: m.Look("#f00"), "colour='#f00' is unknown"),
    "colours of names": (lambda: m.Axis(ticks=[1], names=["a"], name_colours=["red"]), "name_colours='red'"),
    "edge": (lambda: m.Bars([1], [2], edge="red"), "edge='red'"),
    "hatch": (lambda: m.Bars([1], [2], hatch="x"), "hatch='x' is unknown"),
    "bases": (lambda: m.Bars([1, 2, 3], [2, 2, 2], base=[0, 1]), "3 bars begin at one base or at one each"),
    "map": (lambda: m.ColourBar("mass", map="jet"), "map='jet' is unknown; give one of probability, logit"),
    "open end": (lambda: m.ColourBar("mass", open_end="both"), "open_end='both'"),
    "ends": (lambda: m.ColourBar("mass", low=2, high=1), "bar begins at its lower end, and was given from low=2"),
    "log ends": (lambda: m.ColourBar("mass", low=0, high=1, log=True), "only numbers above 0; a colour bar"),
    "scale": (lambda: m.Axis(scale="cubic"), "scale='cubic' is unknown; give one of linear, log"),
    "log limits": (lambda: m.Axis("loss", "log", (0, None)), "only numbers above 0; the axis 'loss'"),
    "ticks": (lambda: m.Axis(ticks="square"), "ticks='square' is unknown; give one of round"),
    "names": (lambda: m.Axis("loss", ticks=[1, 2], names=["a"]), "names of the axis 'loss' stand one at each of ticks"),
    "names alone": (lambda: m.Axis("loss", names=["a"]), "names of the axis 'loss' stand one at each of ticks"),
    "legend": (lambda: m.Legend(place="left"), "place='left' is unknown; give one of above, upper left"),
    "lengths": (lambda: m.Line([1, 2], [1, 2, 3]), "a Line takes one value for each of its points; given are x 2, y 3"),
    "bounds": (lambda: m.Points([1, 2], [1, 2], low=[0], high=[3]), "given are x 2, y 2, low 1, high 1"),
    "one bound": (lambda: m.Points([1], [1], left=[0]), "give both left and right, or neither"),
    "texts": (lambda: m.Line([1, 2], [1, 2], texts=["one"]), "given are x 2, y 2, texts 1"),
    "rows": (lambda: m.Line([[1, 2]], [[1, 2]]), "given are x 1x2, y 1x2"),
    "words": (lambda: m.Line(["a"], [1]), "x of a Line are no numbers: could not convert string to float: 'a'"),
    "cells": (lambda: m.Image([1, 2], m.ColourBar("mass")), r"rows and columns; given are cells of shape \(2,\)"),
    "no cells": (lambda: m.Image(np.zeros((0, 3)), m.ColourBar("mass")), r"shape \(0, 3\)"),
    "no level": (lambda: m.Reference(), "at one x or at one y; given are x=None and y=None"),
    "two levels": (lambda: m.Reference(x=1, y=2), "given are x=1 and y=2"),
    "side": (lambda: m.Text(1, 2, "a", side="left"), "side='left' is unknown; give one of right, above"),
    "mark": (lambda: m.Panel([LINE, "a line"]), "a str is no mark, as a Line or an Image is one"),
    "no panels": (lambda: m.Drawing([]), "a drawing has at least one panel"),
    "marks for panels": (lambda: m.Drawing([LINE]), "a drawing has at least one panel, each a Panel"),
    "columns": (lambda: m.Drawing([m.Panel([LINE])], columns=0), "columns=0"),
    "ratios": (lambda: m.Drawing([m.Panel([LINE])], ratios=[1, 2]), "ratios are the widths of 1 columns; given are 2"),
    "opacity": (lambda: m.Look(opacity=2), "opacity=2 is none of the shares from 0 to 1"),
    "band": (lambda: m.Line([1], [1], band=-1), "band=-1 is not a finite number of 0 or more"),
    "size": (lambda: m.Look(size=float("nan")), "size=nan is not a finite number above 0"),
    "step": (lambda: m.Image([[1.0]], m.ColourBar("mass"), step=0), "step=0 is not a finite number above 0"),
    "factor": (lambda: m.SecondAxis("also", 0.0, [1]), "factor=0.0 is not a finite number above 0"),
    "width of a drawing": (lambda: m.Drawing([m.Panel([LINE])], width=0), "width=0 is not a finite number above 0"),
    "quoted colour": (lambda: m.Look('"#rrggbb"'), "colour='\"#rrggbb\"' is unknown"),
    "shared": (lambda: m.Drawing([m.Panel([LINE])], shared="both"), "shared='both' is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_renderer_could_draw_is_refused_where_it_is_made(case):
    make, words = REFUSED[case]
    with pytest.raises(SinkscopeError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_word_is_drawn():
    marks = [
        m.Line([1, 2], [3, row], m.Look.of(row, marker=marker)) for row, marker in enumerate([*m.MARKERS, "point", ""])
    ]
    marks += [m.Line([1, 2], [3, 4], m.Look("#12ab9F", dash)) for dash in [*m.DASHES, "dotted"]]
    marks += [m.Bars([1], [2], hatch=hatch) for hatch in ("/", "\\", "")]
    drawing = m.Drawing([m.Panel(marks)])
    assert len(matplotlib_figure(drawing).axes[0].lines) == len(plotly_figure(drawing, themed=False)["data"]) - 3 == 15


@pytest.mark.slow
def test_dollars_and_tags_are_shown_as_they_are_written_on_paper_and_on_the_page(tmp_path):
    words = r"$\frac{ costs $5 & <b>2</b>"
    bar = m.ColourBar(words, low=0, high=1)
    axes = {"x": m.Axis(words, ticks=[1, 2], names=[words, "b"]), "y": m.Axis(words)}
    above = m.SecondAxis(words, 2.0, [2, 4])
    image = m.Panel([m.Image([[0.0, 1.0]], bar)], title=words)
    line = m.Line([1, 2], [3, 4], name=words)
    drawing = m.Drawing(
        [m.Panel([line], **axes, above=above, legend=m.Legend(words)), image], {"model": words}, width=6.75
    )
    paper = matplotlib_figure(drawing)
    paper.savefig(tmp_path / "dollars.svg")
    shown = re.findall(r"<!-- (.*?) -->", (tmp_path / "dollars.svg").read_text(), re.DOTALL)
    plain = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert sum(each == plain for each in shown) == 9  # x, y, a tick, above, title, bar, legend, its title, the source
    page = plotly_figure(drawing, themed=False)
    assert page["data"][0]["name"] == plain and page["layout"]["xaxis"]["title"]["text"] == plain


def test_a_figure_of_ones_own_that_cannot_be_drawn_says_so_before_anything_is_drawn():
    @figures.figure
    def broken(record):
        return m.Drawing([m.Panel([m.Line([1, 2, 3], record)])])

    with pytest.raises(SinkscopeError, match="given are x 3, y 2"):
        broken([1.0, 2.0])
    with pytest.raises(SinkscopeError, match="given are x 3, y 2"):
        broken.describe([1.0, 2.0])
