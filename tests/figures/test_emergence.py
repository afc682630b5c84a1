"""What the figures of emergence draw, read back from their artists, against the record in plain numpy."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sinkscope import figures
from sinkscope.errors import SinkscopeError
from sinkscope.lab import head_masses, language_table
from tests.figures.records import TRAINED, drawn, language
from tests.support.training_records import emergence_record, language_record

STUDENT = 4.302652730  # t at 97.5% of three seeds


def artists(axes) -> dict[str, object]:
    return {each.get_gid(): each for each in axes.get_children() if each.get_gid()}


def heights(axes, gid: str) -> np.ndarray:
    return np.asarray(artists(axes)[gid].get_ydata(), float)


def expected(record, arm: str, layer: int) -> list[np.ndarray]:
    """[seed, step] of each panel."""
    own, other = record.sel(arm=arm), record.sel(arm=arm, tokens="non-trigger")
    return [
        other["bos_mass"].sel(layer=layer).values.mean(-1),
        other["row_sum"].sel(layer=layer).values.mean(-1),
        (own["bos_value_norm"] / own["value_norm"]).sel(layer=layer).values.mean(-1),
        own["loss"].sel(tokens="all").values - 1.8,
    ]


def test_lines_are_means_over_seeds_and_bands_their_t_intervals():
    record = emergence_record(layers=2, heads=2)
    panels = figures.emergence(record, layer=1).axes
    for arm in ("softmax", "sigmoid"):
        for axes, values in zip(panels, expected(record, arm, 1), strict=True):
            np.testing.assert_allclose(heights(axes, f"mean-{arm}"), values.mean(0), rtol=1e-6)
            np.testing.assert_array_equal(artists(axes)[f"mean-{arm}"].get_xdata(), record["step"])
            outline = artists(axes)[f"band-mean-{arm}"].get_paths()[0].vertices
            half = STUDENT * values.std(0, ddof=1) / 3**0.5
            for step, mean, each in zip(record["step"].values, values.mean(0), half, strict=True):
                around = outline[outline[:, 0] == step, 1]
                np.testing.assert_allclose([around.min(), around.max()], [mean - each, mean + each], rtol=1e-6)
            (whisker,) = artists(axes)[f"interval-last-{arm}"].get_segments()
            last = values.mean(0)[-1]
            np.testing.assert_allclose(whisker[:, 1], [last - half[-1], last + half[-1]], rtol=1e-6)
            assert (whisker[:, 0] > record["step"].max().item()).all()
            rings = artists(axes)[f"seeds-{arm}"]
            np.testing.assert_allclose(rings.get_ydata(), values[:, -1], rtol=1e-6)
            np.testing.assert_array_equal(rings.get_xdata(), whisker[0, 0])


def test_the_uniform_null_of_each_kind_of_arm_is_drawn():
    record = emergence_record(arms=("softmax", "sink token"))
    record["bos_null"][1] = 0.05
    axes = figures.emergence(record).axes[0]
    assert {float(heights(axes, gid)[0]) for gid in artists(axes) if gid.startswith("null-")} == {0.06, 0.05}
    assert "uniform null, 0.06" in axes.get_legend_handles_labels()[1]


def test_fewer_than_three_seeds_have_no_bands_and_the_figure_says_so():
    figure = figures.emergence(emergence_record(seeds=2))
    assert not any(gid.startswith(("band-", "interval-")) for axes in figure.axes for gid in artists(axes))
    assert "no intervals: 2 seeds" in figure.legends[0].get_title().get_text()
    assert "95% t intervals over 3 seeds" in figures.emergence(emergence_record()).legends[0].get_title().get_text()


def test_every_arm_has_a_look_of_its_own():
    arms = ("softmax", "softmax1", "learned sink", "clipped softmax", "sigmoid", "relu", "sink token")
    axes = figures.emergence(emergence_record(arms=arms)).axes[0]
    lines = [artists(axes)[f"mean-{arm}"] for arm in arms]
    assert len({line.get_color() for line in lines}) == len(arms)


def test_axes_say_probability_and_nats_and_share_no_label():
    labels = [axes.get_ylabel() for axes in figures.emergence(emergence_record()).axes]
    assert "probability" in labels[0] and "nats" in labels[3] and len(set(labels)) == 4


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(SinkscopeError, match="layer 1 is out of range: this record has layers 0 to 0"):
        figures.emergence(emergence_record(), layer=1)


@pytest.mark.slow
def test_perplexities_and_their_intervals_stand_at_the_number_of_sinks():
    record = language()
    axes, table = figures.language_emergence(record).axes[0], language_table(record)
    order = ["window 8", "sinks 1+7", "sinks 4+4", "dense"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "4", "dense"]
    places = []
    for arm in record["arm"].values:
        for seed in (0, 1):
            own = table[(table["arm"] == arm) & (table["seed"] == seed)]
            drawn = artists(axes)[f"ppl-{arm}-{seed}"]
            np.testing.assert_allclose(drawn.get_ydata(), own["ppl"])
            assert np.rint(drawn.get_xdata()).tolist() == [order.index(name) for name in own["policy"]]
            whiskers = np.array([piece[:, 1] for piece in artists(axes)[f"interval-ppl-{arm}-{seed}"].get_segments()])
            np.testing.assert_allclose(whiskers, own[["low", "high"]])
            places += drawn.get_xdata().tolist()
    assert len(set(np.round(places, 6))) == len(places)  # none hides another
    assert axes.get_yscale() == "log"  # a factor of 5 between them


def test_similar_perplexities_have_a_linear_axis():
    assert figures.language_emergence(language_record({"a": 0.1}, {"a": 1.2})).axes[0].get_yscale() == "linear"


def test_each_head_is_one_point_beside_the_null_and_the_threshold_of_a_sink():
    record = language()
    axes, heads = figures.language_emergence(record).axes[1], head_masses(record)
    for arm, own in heads.groupby("arm"):
        np.testing.assert_allclose(heights(axes, f"mass-{arm}"), own["mass"])
        assert set(heights(axes, f"null-{arm}")) == {own["null"].iloc[0]}
    assert set(heights(axes, "threshold")) == {0.3}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_two_drawings_of_the_same_record_are_byte_equal_and_name_their_source(name):
    def saved() -> bytes:
        target = io.BytesIO()
        drawn(name).savefig(target, format="svg")
        return target.getvalue()

    first = saved()
    assert first == saved() and b"a small model" in first


@pytest.mark.parametrize("name", TRAINED)
def test_width_is_a_page_and_no_text_lies_over_another(name):
    figure = drawn(name)
    assert figure.get_figwidth() == 6.75
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, axes.title)]
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for number, box in enumerate(boxes):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :]), number


@pytest.mark.parametrize(("draw", "other"), [("emergence", language), ("language_emergence", emergence_record)])
def test_another_record_is_refused(draw, other):
    with pytest.raises(SinkscopeError, match="not a record of"):
        getattr(figures, draw)(other())
