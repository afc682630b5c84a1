"""The explorer's view on paper, read back from its artists, against the record itself."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sinkscope import figures
from sinkscope.analysis.maps import from_maps
from sinkscope.errors import SinkscopeError
from tests.figures.records import TOKENS, view
from tests.support.synthetic import synthetic_maps


def curves(figure) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in figure.axes[1].lines}


@pytest.mark.slow
def test_the_map_is_that_of_the_record_and_keys_that_are_not_seen_are_apart():
    record = view()
    figure = figures.explored(record)
    drawn, expected = figure.axes[0].images[0].get_array(), record.attention_map.values[0, 0, 0]
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isnan(expected))
    np.testing.assert_allclose(drawn.compressed(), np.maximum(expected[np.isfinite(expected)], 1e-5), rtol=1e-6)
    assert figure.axes[0].images[0].get_extent() == [-0.5, 39.5, 39.5, -0.5]
    assert figure.axes[0].get_title() == "layer 7, head 3: window 12"
    assert "probability" in figure.axes[-1].get_xlabel()


@pytest.mark.slow
def test_losses_are_running_means_over_the_tokens_that_were_scored():
    record = view(policies=("dense", "recompute 12"))
    record.nll[1, 0, 13:30] = np.nan
    for name, points in curves(figures.explored(record)).items():
        losses = record.nll.sel(policy=name).values[0]
        scored = [token for token in range(TOKENS) if np.isfinite(losses[token])]
        means = [np.mean([losses[each] for each in scored[: at + 1][-16:]]) for at in range(len(scored))]
        np.testing.assert_array_equal(points[:, 0], scored)
        np.testing.assert_allclose(points[:, 1], means, rtol=1e-5)
    assert list(curves(figures.explored(record))) == ["dense", "recompute 12"]


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 28])
def test_the_map_of_a_window_stands_where_it_stands_in_the_text(first):
    image = figures.explored(view(first)).axes[0].images[0]
    assert image.get_extent() == [first - 0.5, 39.5, 39.5, first - 0.5]


@pytest.mark.slow
def test_the_axes_of_a_pooled_map_are_tokens():
    record = from_maps(synthetic_maps(sequences=1, layers=1, heads=1, tokens=600))
    image = figures.explored(record[["attention_map"]]).axes[0].images[0]
    assert image.get_array().shape == (64, 64) and image.get_extent() == [-0.5, 599.5, 599.5, -0.5]


@pytest.mark.slow
def test_without_losses_there_is_the_map_alone_and_without_a_map_a_sentence():
    assert len(figures.explored(view().drop_vars("nll")).axes) == 2  # with its scale
    with pytest.raises(SinkscopeError, match="attention_map"):
        figures.explored(view().drop_vars("attention_map"))


@pytest.mark.slow
def test_policies_that_scored_nothing_yet_and_maps_of_nothing_are_drawn_without_a_warning(tmp_path):
    record = view()
    record.nll[1] = np.nan
    record.attention_map[:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.explored(record)
        figure.savefig(tmp_path / "view.svg")
    assert list(curves(figure)) == ["dense"]


@pytest.mark.slow
def test_the_first_keys_stand_beside_the_map_widened_with_the_records_numbers_and_are_named():
    record = view()
    axes = figures.explored(record).axes[0]
    expected = np.maximum(record.attention_map.values[0, 0, 0], 1e-5)
    edges = []
    for key, strip in enumerate(axes.images[1:5]):
        drawn = strip.get_array()
        np.testing.assert_allclose(drawn.filled(np.nan)[:, 0], expected[:, key], rtol=1e-6)
        left, right, bottom, top = strip.get_extent()
        assert right - left > 1.3 and (bottom, top) == (39.5, -0.5)
        edges.append((left, right))
        assert dict(zip(axes.get_xticks(), (each.get_text() for each in axes.get_xticklabels()), strict=True))[
            (left + right) / 2
        ] == str(key)
    assert len(axes.images) == 5 and edges[-1][1] < -0.5 and axes.get_xlim() == (edges[0][0], 39.5)
    page = figures.plotly_figure(figures.explored.describe(record))
    maps = [trace for trace in page["data"] if trace["type"] == "heatmap"]
    assert [trace["showscale"] for trace in maps] == [True, False, False, False, False]
    assert "key 2<br>" in maps[3]["hovertemplate"] and maps[3]["dx"] == pytest.approx(edges[0][1] - edges[0][0])


@pytest.mark.slow
def test_the_axis_lines_lie_below_the_cells():
    axes = figures.explored(view()).axes[0]
    assert all(spine.get_zorder() < image.get_zorder() for spine in axes.spines.values() for image in axes.images)


@pytest.mark.slow
def test_few_keys_need_no_strip():
    record = view().isel(map_query=slice(20), map_key=slice(20))
    assert len(figures.explored(record[["attention_map"]]).axes[0].images) == 1
