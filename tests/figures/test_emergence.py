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


@pytest.mark.slow
def test_a_panel_for_each_arm_has_its_mean_over_seeds_t_intervals_and_every_seed():
    record = emergence_record(layers=2, heads=2)
    panels = figures.emergence(record, layer=1).axes
    softmax = record["bos_mass"].sel(arm="softmax", tokens="non-trigger", layer=1).mean("head").values
    for axes, arm in zip(panels, ("softmax", "sigmoid"), strict=False):
        values = record["bos_mass"].sel(arm=arm, tokens="non-trigger", layer=1).mean("head").values  # [seed, step]
        assert axes.get_title() == arm
        np.testing.assert_allclose(heights(axes, f"mean-{arm}"), values.mean(0), rtol=1e-6)
        np.testing.assert_array_equal(artists(axes)[f"mean-{arm}"].get_xdata(), record["step"])
        outline = artists(axes)[f"band-mean-{arm}"].get_paths()[0].vertices
        half = STUDENT * values.std(0, ddof=1) / 3**0.5
        for step, mean, each in zip(record["step"].values, values.mean(0), half, strict=True):
            around = outline[outline[:, 0] == step, 1]
            np.testing.assert_allclose([around.min(), around.max()], [mean - each, mean + each], rtol=1e-6)
        for seed in range(3):
            np.testing.assert_allclose(heights(axes, f"seed-{seed}-{arm}"), values[seed], rtol=1e-6)
        if arm != "softmax":
            np.testing.assert_allclose(heights(axes, f"baseline-{arm}"), softmax.mean(0), rtol=1e-6)
        assert ("baseline-softmax" in artists(axes)) is False
    limits = {axes.get_ylim() for axes in panels[:2]}
    assert len(limits) == 1  # arms are compared by eye


@pytest.mark.slow
def test_the_last_step_of_all_arms_stands_in_rows_with_a_ring_for_each_seed():
    record = emergence_record(layers=2, heads=2)
    last = figures.emergence(record, layer=1).axes[2:]
    for row, arm in enumerate(("softmax", "sigmoid")):
        own = record.sel(arm=arm).isel(step=-1)
        at = own.sel(layer=1)
        expected = [
            at["row_sum"].sel(tokens="non-trigger").values.mean(-1),
            (at["bos_value_norm"] / at["value_norm"]).values.mean(-1),
            own["loss"].sel(tokens="all").values - 1.8,
        ]
        for axes, values in zip(last, expected, strict=True):
            rings, mean = artists(axes)[f"seeds-{arm}"], artists(axes)[f"last-{arm}"]
            np.testing.assert_allclose(rings.get_xdata(), values, rtol=1e-6)
            assert set(rings.get_ydata()) == {row} == set(mean.get_ydata())
            np.testing.assert_allclose(mean.get_xdata(), values.mean(), rtol=1e-6)
            assert axes.get_yticklabels()[row].get_text() == arm


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["loss", "gate of non-triggers", "row sum of triggers"])
def test_another_quantity_can_be_followed(quantity):
    record = emergence_record()
    axes = figures.emergence(record, quantity=quantity).axes[1]
    known = {
        "loss": record["loss"].sel(tokens="all"),
        "gate of non-triggers": record["gate"].sel(tokens="non-trigger", layer=0, head=0),
        "row sum of triggers": record["row_sum"].sel(tokens="trigger", layer=0, head=0),
    }[quantity]
    np.testing.assert_allclose(heights(axes, "mean-sigmoid"), known.sel(arm="sigmoid").mean("seed"), rtol=1e-6)
    assert not any(gid == "null" for gid in artists(axes))
    with pytest.raises(SinkscopeError, match="quantity='mass'"):
        figures.emergence(record, quantity="mass")


@pytest.mark.slow
def test_the_uniform_null_of_each_arm_is_drawn_in_its_panel():
    record = emergence_record(arms=("softmax", "sink token"))
    record["bos_null"][1] = 0.05
    for axes, null in zip(figures.emergence(record).axes, (0.06, 0.05), strict=False):
        assert float(heights(axes, "null")[0]) == null


@pytest.mark.slow
def test_fewer_than_three_seeds_have_no_bands_and_the_figure_says_so():
    figure = figures.emergence(emergence_record(seeds=2))
    assert not any(gid.startswith(("band-", "interval-")) for axes in figure.axes for gid in artists(axes))
    assert "no intervals: 2 seeds" in figure.legends[0].get_title().get_text()
    assert "95% t intervals over 3 seeds" in figures.emergence(emergence_record()).legends[0].get_title().get_text()


@pytest.mark.slow
def test_axes_say_probability_and_nats_and_share_no_label():
    panels = figures.emergence(emergence_record()).axes
    assert "probability" in panels[0].get_ylabel() and "nats" in panels[-1].get_xlabel()
    assert len({axes.get_xlabel() for axes in panels[-3:]}) == 3


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


@pytest.mark.slow
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


@pytest.mark.slow
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
