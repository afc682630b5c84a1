"""What the streaming figures draw, read back from their artists, against the record or the table in plain numpy."""

from __future__ import annotations

import io
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from sinkscope import figures
from sinkscope.errors import SinkscopeError
from sinkscope.figures.streaming import estimated
from tests.figures.records import STREAMED, ablation_table, decode_table, drawn
from tests.support.loss_records import autoregressive, collapsing, loss_record


def artists(axes) -> dict[str, object]:
    return {each.get_gid(): each for each in axes.get_children() if each.get_gid()}


def heights(axes, gid: str) -> np.ndarray:
    return np.asarray(artists(axes)[gid].get_ydata(), float)


def whiskers(axes, gid: str) -> np.ndarray:
    """[whisker, lower and upper] of the vertical lines."""
    return np.array([segment[:, 1] for segment in artists(axes)[gid].get_segments()])


def test_lines_are_means_of_the_losses_of_all_sequences_in_each_bin():
    curve = collapsing(sequences=3, tokens=320)
    axes = figures.log_perplexity(curve, width=64).axes[0]
    for row, name in enumerate(curve["policy"].values):
        nll = curve["nll"].values[row].astype(float)
        expected = [np.nanmean(nll[:, start : start + 64]) for start in range(0, 320, 64)]
        np.testing.assert_allclose(heights(axes, f"mean-{name}"), expected, rtol=1e-10)
        places = np.asarray(artists(axes)[f"mean-{name}"].get_xdata(), float)
        np.testing.assert_allclose(places, [32.0, 95.5, 159.5, 223.5, 287.5])


def test_bands_of_independent_losses_are_as_wide_as_the_textbook_says():
    nll = 5 + np.random.default_rng(0).normal(size=(1, 4, 1024))
    axes = figures.log_perplexity(loss_record(nll), width=256).axes[0]
    outline = artists(axes)["band-mean-dense"].get_paths()[0].vertices
    mean = heights(axes, "mean-dense")
    for column, place in enumerate(artists(axes)["mean-dense"].get_xdata()):
        around = outline[np.isclose(outline[:, 0], place), 1]
        sample = nll[0, :, column * 256 : (column + 1) * 256]
        half = stats.t.ppf(0.975, 3) * stats.sem(sample.mean(1))  # over the four texts
        assert around.max() - mean[column] == pytest.approx(half, rel=1e-5)
        assert mean[column] - around.min() == pytest.approx(half, rel=1e-5)


def test_a_sampled_policy_stands_on_the_nearest_line_moved_by_the_mean_difference():
    curve = collapsing(tokens=1280, sampled=160)
    axes = figures.log_perplexity(curve, width=64).axes[0]
    nll = curve["nll"].values.astype(float)
    place, mean = np.asarray(artists(axes)["mean-recompute 64"].get_xdata()), heights(axes, "mean-recompute 64")
    apart = [np.nanvar(nll[2] - nll[other]) for other in (0, 1, 3)]
    nearest = nll[(0, 1, 3)[int(np.argmin(apart))]]
    bins = int(np.ceil(64 / (320 / 20)))
    for column, start in enumerate(range(0, 1280, 64 * bins)):
        inside = slice(start, start + 64 * bins)
        scored = np.nonzero(np.isfinite(nll[2, :, inside]))[1]
        middle = int((start + scored.mean()) // 64)
        expected = np.nanmean((nll[2] - nearest)[:, inside]) + np.nanmean(nearest[:, 64 * middle : 64 * middle + 64])
        assert mean[column] == pytest.approx(expected, rel=1e-10)
        assert 64 * middle <= place[column] < 64 * middle + 64
    bars = whiskers(axes, "interval-mean-recompute 64")
    assert ((bars[:, 0] < mean) & (mean < bars[:, 1])).all()
    assert "recompute 64 (sampled)" in axes.get_legend_handles_labels()[1]


@pytest.mark.slow
def test_the_difference_estimate_is_closer_to_the_truth_than_the_plain_mean_of_the_sample():
    random = np.random.default_rng(0)
    base = 3 + 2.5 * autoregressive((1, 4000), 0.3, seed=3)
    full = base + 0.1 + random.normal(0, 0.2, base.shape)
    errors = []
    for _ in range(40):
        kept = random.choice(4000, 100, replace=False)
        sampled = np.full_like(full, np.nan)
        sampled[:, kept] = full[:, kept]
        errors.append((estimated(sampled, base[None], 4000, 1)[1][0] - full.mean(), np.nanmean(sampled) - full.mean()))
    better, plain = np.sqrt(np.mean(np.square(errors), axis=0))
    assert better == pytest.approx(0.2 / 10, rel=0.35) and plain == pytest.approx(2.5 / 10, rel=0.35)


@pytest.mark.slow
def test_cache_sizes_are_marked_where_they_lie_in_the_text():
    axes = figures.log_perplexity(collapsing(), width=64).axes[0]
    marks = [gid for gid in artists(axes) if gid.startswith("full-")]
    assert marks == ["full-64"]
    assert list(artists(axes)["full-64"].get_xdata()) == [64, 64]
    short = figures.log_perplexity(collapsing(tokens=50)).axes[0]
    assert not any(gid.startswith("full-") for gid in artists(short))


@pytest.mark.slow
def test_a_collapse_makes_the_axis_logarithmic_and_equal_policies_leave_it_linear():
    curve = collapsing()
    assert figures.log_perplexity(curve).axes[0].get_yscale() == "log"
    assert figures.log_perplexity(curve.sel(policy=["dense", "sinks 4+60"])).axes[0].get_yscale() == "linear"
    assert figures.log_perplexity(curve.sel(policy="dense")).axes[0].get_yscale() == "linear"
    assert figures.log_perplexity(curve).axes[0].get_ylabel() == "log-perplexity (nats per token)"


@pytest.mark.slow
def test_bars_stand_on_zero_as_high_as_the_perplexity_with_the_interval_across():
    table = ablation_table(caches=(256, 512))
    figure = figures.ablation(table)
    for axes, cache in zip(figure.axes, (256, 512), strict=True):
        assert axes.get_ylim()[0] == 0 and axes.get_yscale() == "linear"
        bars = {each.get_label(): each for each in axes.containers}
        for (kind, positions), own in table[table["cache_size"] == cache].groupby(["kind", "positions"]):
            drawn = bars[f"{kind}, {positions}"]
            np.testing.assert_allclose([bar.get_height() for bar in drawn], own["ppl"])
            middles = [bar.get_x() + bar.get_width() / 2 for bar in drawn]
            counts = [(0, 1, 4)[round(middle)] for middle in middles]
            assert counts == own["sinks"].tolist()
            np.testing.assert_allclose(whiskers(axes, f"interval-{kind}-{positions}"), own[["low", "high"]])
        edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for group in bars.values() for bar in group)
        assert all(right <= left + 1e-9 for (_, right), (left, _) in itertools.pairwise(edges))
    alone = figure.axes[0].containers[0][0]
    assert alone.get_x() + alone.get_width() / 2 == pytest.approx(0)  # the only bar without sinks is in the middle


@pytest.mark.slow
def test_beyond_a_factor_of_four_points_on_a_logarithmic_axis_take_the_place_of_bars():
    table = ablation_table(zero=5158.0)
    axes = figures.ablation(table).axes[0]
    assert axes.get_yscale() == "log" and not axes.containers
    own = table[(table["kind"] == "first") & (table["positions"] == "cache")]
    np.testing.assert_allclose(heights(axes, "first-cache"), own["ppl"])
    np.testing.assert_allclose(whiskers(axes, "interval-first-cache"), own[["low", "high"]])
    assert [tick.get_text() for tick in axes.get_yticklabels()][-1] == "5,000"
    assert figures.ablation(ablation_table(zero=70.0)).axes[0].containers


@pytest.mark.slow
def test_a_perplexity_that_is_not_finite_leaves_a_gap():
    table = ablation_table()
    table.loc[table["sinks"] == 0, ["ppl", "low", "high"]] = [np.inf, np.nan, np.nan]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.ablation(table)
        figure.savefig(io.BytesIO(), format="png")
    bars = {each.get_label(): [bar.get_height() for bar in each] for each in figure.axes[0].containers}
    assert np.isnan(bars["first, cache"][0]) and np.isfinite(bars["first, cache"][1:]).all()
    drawn_whiskers = artists(figure.axes[0])["interval-first-cache"].get_segments()
    assert sum(len(piece) > 0 for piece in drawn_whiskers) == len(bars["first, cache"]) - 1
    assert figures.plotly_figure(figures.ablation.describe(table))["data"][0]["y"][0] is None


@pytest.mark.slow
def test_decode_cost_shows_milliseconds_and_mebibytes_against_cache_size():
    table = decode_table()
    time, memory = figures.decode_cost(table).axes
    for name in ("recompute", "sinks + window"):
        own = table[table["policy"] == name]
        np.testing.assert_allclose(heights(time, f"milliseconds-{name}"), own["milliseconds"])
        np.testing.assert_allclose(whiskers(time, f"interval-milliseconds-{name}"), own[["low", "high"]])
        np.testing.assert_allclose(heights(memory, f"kv_bytes-{name}"), own["kv_bytes"] / 1024**2)
        np.testing.assert_array_equal(artists(time)[f"milliseconds-{name}"].get_xdata(), own["cache_size"])
    assert heights(time, "level-dense")[0] == 88 and heights(memory, "level-dense")[0] == 3e9 / 1024**2
    for axes, unit in ((time, "(ms, log scale)"), (memory, "(MiB, log scale)")):
        assert axes.get_xscale() == axes.get_yscale() == "log" and unit in axes.get_ylabel()
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["256", "512", "1,024", "2,048"]
        assert 3 <= len(axes.get_yticks()) <= 9


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
def test_provenance_width_and_bytes_are_those_of_every_figure(name):
    figure = drawn(name)
    assert figure.get_figwidth() in (3.25, 6.75) and figure.axes[0].xaxis.label.get_fontsize() == 8
    assert "some/model" in figure.get_supxlabel() and "a text" in figure.get_supxlabel()
    saved = [io.BytesIO(), io.BytesIO()]
    for target, each in zip(saved, (figure, drawn(name)), strict=True):
        each.savefig(target, format="pdf")
    assert saved[0].getvalue() == saved[1].getvalue() and b"some/model" in saved[0].getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
def test_the_legend_lies_inside_the_figure_and_off_the_axes(name):
    figure = drawn(name)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent(renderer)
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1 + 1 and legend.y1 <= figure.bbox.y1 + 1
    assert not any(legend.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 3, 9), (4, 1, 70)])
def test_small_records_are_drawn_without_a_warning(shape):
    nll = np.random.default_rng(0).gamma(1, 2.7, size=shape)
    nll[..., 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.log_perplexity(loss_record(nll)).savefig(io.BytesIO(), format="png")


def test_what_cannot_be_drawn_is_refused_in_a_sentence():
    with pytest.raises(SinkscopeError, match="no nll"):
        figures.log_perplexity(collapsing().drop_vars("nll"))
    with pytest.raises(SinkscopeError, match="width=0"):
        figures.log_perplexity(collapsing(), width=0)
    for draw, table in ((figures.ablation, ablation_table()), (figures.decode_cost, decode_table())):
        with pytest.raises(SinkscopeError, match="low is missing"):
            draw(table.drop(columns="low"))
        with pytest.raises(SinkscopeError, match="at least one row"):
            draw(table.iloc[:0])
    with pytest.raises(SinkscopeError, match="sinks=0, cache_size=512, positions=cache, kind=first comes twice"):
        figures.ablation(pd.concat([ablation_table(), ablation_table().iloc[:1]]))
