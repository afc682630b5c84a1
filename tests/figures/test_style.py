"""The look: sizes, provenance in every file, the same bytes twice, and nothing of it left behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import matplotlib
import pytest
from PIL import Image

from sinkscope import figures
from sinkscope.figures.style import number
from tests.figures.records import CAPTURED
from tests.support.synthetic import synthetic_record


@pytest.fixture(scope="module")
def record():
    made = synthetic_record(sequences=2, layers=2, heads=2, tokens=24)
    made.attrs |= {"model": "some/model", "revision": "abc123", "text": "a text", "date": "2020-02-02"}
    return made


def saved(figure, kind: str) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format=kind)
    return target.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURED)
def test_width_is_a_column_or_a_page_and_text_is_eight_points(record, name):
    figure = getattr(figures, name)(record)
    assert min(abs(figure.get_figwidth() - 3.25), abs(figure.get_figwidth() - 6.75)) < 0.3
    assert figure.axes[0].xaxis.label.get_fontsize() == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_two_saves_of_the_same_record_are_byte_equal(record, kind):
    first = saved(figures.received_by_position(record), kind)
    assert first == saved(figures.received_by_position(record), kind)


@pytest.mark.slow
def test_every_format_holds_the_whole_provenance(record):
    figure = figures.norms(record)
    image = Image.open(io.BytesIO(saved(figure, "png")))
    held = json.loads(image.text["Description"])
    assert held["model"] == "some/model" and held["revision"] == "abc123"
    assert "some/model" in saved(figure, "svg").decode()
    assert b"some/model" in saved(figure, "pdf")
    assert b"/Type3" not in saved(figure, "pdf")  # type 42: real fonts


def test_the_source_line_stands_under_the_figure(record):
    text = figures.norms(record).get_supxlabel()
    assert "some/model" in text and "a text" in text and "2020-02-02" in text


@pytest.mark.slow
def test_no_setting_leaks_in_either_direction(record):
    plain = saved(figures.norms(record), "png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "text.color": "white", "pdf.fonttype": 3}):
        before = dict(matplotlib.rcParams)
        figure = figures.norms(record)
        assert dict(matplotlib.rcParams) == before
        assert saved(figure, "png") == plain


@pytest.mark.slow
def test_drawing_and_reading_need_neither_torch_nor_pyplot(tmp_path):
    code = (
        "import sys; from tests.support.synthetic import synthetic_record; from sinkscope import figures;"
        "figures.norms(synthetic_record(2, 2, 2, 24));"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_figure_shows_itself_in_a_notebook(record):
    assert figures.norms(record)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.02014, "0.0201"), (1234.5, "1,234"), (3.0, "3.00"), (12.34, "12.3"), (float("nan"), "n/a"),
     (2.5e-7, "2.50 × 10⁻⁷"), (999.6, "1,000"), (9.999, "10.00"), (-3.14159, "−3.14"),
     (float("-inf"), "−∞")],
)  # fmt: skip
def test_numbers_for_a_reader(value, shown):
    assert number(value) == shown
