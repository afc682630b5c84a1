"""What the figures draw, read back from their artists, against the record itself in plain numpy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from sinkscope import figures
from sinkscope.analysis.maps import from_maps
from sinkscope.errors import SinkscopeError
from tests.figures.records import CAPTURED
from tests.support.synthetic import synthetic_maps, synthetic_record


@pytest.fixture(scope="module")
def record() -> xr.Dataset:
    return synthetic_record(sequences=3, layers=4, heads=3, tokens=40)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return synthetic_maps(sequences=3, layers=4, heads=3, tokens=40)


def lines(figure: Figure, axes: int = 0) -> dict[str, np.ndarray]:
    return {line.get_gid(): np.asarray(line.get_ydata(), float) for line in figure.axes[axes].lines if line.get_gid()}


def harmonic_tail(length: int, position: int) -> float:
    return sum(1 / (i + 1) for i in range(position, length)) / (length - position)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 3])
def test_the_heat_map_shows_the_mean_mass_on_the_first_keys(record, maps, first):
    figure = figures.sink_mass_heatmap(record, first=first)
    expected = maps[:, :, :, first:, :first].sum(-1).mean(axis=(0, 3))
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected, rtol=1e-5)
    null = np.mean([first / (i + 1) for i in range(first, 40)])
    assert figure.axes[1].lines[-1].get_ydata()[0] == pytest.approx(null, rel=1e-6)


def test_mass_by_layer_shows_means_over_heads_and_every_head(record, maps):
    drawn = lines(figures.mass_by_layer(record))
    first = maps[:, :, :, 1:, 0].mean(axis=(0, 3))
    np.testing.assert_allclose(drawn["heads"], first.ravel(), rtol=1e-5)
    np.testing.assert_allclose(drawn["mean-1"], first.mean(1), rtol=1e-5)
    np.testing.assert_allclose(drawn["mean-4"], maps[:, :, :, 4:, :4].sum(-1).mean(axis=(0, 2, 3)), rtol=1e-5)


def test_one_sequence_has_no_interval_and_says_so():
    one = synthetic_record(sequences=1, layers=2, heads=2, tokens=20)
    figure = figures.mass_by_layer(one)
    assert "no interval" in figure.legends[0].get_title().get_text()


@pytest.mark.slow
def test_mean_maps_shows_logits_above_and_probabilities_below_each_with_its_unit(record, maps):
    figure = figures.mean_maps(record, heads=[(3, 1), (0, 0)])
    images = [axes.images[0] for axes in figure.axes if axes.images]
    np.testing.assert_allclose(images[2].get_array(), np.tril(maps[:, 3, 1, :16, :16].mean(0)), rtol=1e-5)
    np.testing.assert_array_equal(np.ma.filled(images[0].get_array(), np.nan), record["mean_logit"].values[3, 1])
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert sum("logit" in label for label in labels) == 2
    assert sum("probability" in label for label in labels) == 2
    assert images[0].get_cmap().name != images[2].get_cmap().name


@pytest.mark.slow
def test_mean_maps_chooses_the_heads_that_give_the_first_token_most(record, maps):
    figure = figures.mean_maps(record)
    strength = maps[:, :, :, 1:16, 0].mean(axis=(0, 3))
    best = np.unravel_index(strength.argmax(), strength.shape)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:2] == ["layer 0, head 0", "layer 1, head 0"]
    assert f"layer {best[0]}, head {best[1]}" in titles


def test_the_sink_rate_is_the_share_of_heads_above_the_threshold(record, maps):
    figure = figures.sink_rate_curve(record, epsilons=[0.1, 0.3, 0.6], lengths=[16, 40])
    drawn = lines(figure)
    for length in (16, 40):
        alpha = maps[:, :, :, :length, 0].mean(-1)
        expected = [(alpha > epsilon).mean() for epsilon in (0.1, 0.3, 0.6)]
        np.testing.assert_allclose(drawn[f"rate-{length}"], expected, atol=1e-6)
        marks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_gid() == f"null-{length}"]
        assert marks == [pytest.approx(harmonic_tail(length, 0), rel=1e-6)]


@pytest.mark.slow
def test_received_is_the_mean_over_the_queries_that_see_each_key(record, maps):
    drawn = lines(figures.received_by_position(record, sequence=1))
    alpha = maps[1].sum(axis=2) / (40 - np.arange(40))
    np.testing.assert_allclose(drawn["mean"], alpha.mean(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(drawn["strongest"], alpha.max(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(drawn["null"], [harmonic_tail(40, j) for j in range(40)], rtol=1e-6)


def test_the_planted_delimiter_carries_its_text(record):
    figure = figures.received_by_position(record)
    texts = record["token_text"].values[0]
    comma = list(texts).index(",")
    words = {text.get_gid(): text.get_text() for text in figure.axes[0].texts}
    assert words[f"peak-{comma}"] == f"“,” {comma}"
    assert words["peak-0"] == "“<s>” 0"


def test_norms_compare_the_first_token_with_the_rest(record):
    figure = figures.norms(record)
    for axes, variable in enumerate(("key_norm", "value_norm")):
        values = record[variable].values.astype(float)
        drawn = lines(figure, axes)
        np.testing.assert_allclose(drawn["first"], values[..., 0].mean(axis=(0, 2)), rtol=1e-6)
        np.testing.assert_allclose(drawn["rest"], values[..., 1:].mean(axis=(0, 2, 3)), rtol=1e-6)


@pytest.mark.slow
def test_massive_activations_show_the_largest_and_the_median(record):
    drawn = lines(figures.massive_activations(record, ratio=500))
    largest, median = record["activation_max"].values, record["activation_median"].values
    np.testing.assert_allclose(drawn["first"], largest[:, :, 0].max(0))
    np.testing.assert_allclose(drawn["rest"], largest[:, :, 1:].max(axis=(0, 2)))
    np.testing.assert_allclose(drawn["median"], median.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(drawn["ratio"], 500 * median.mean(axis=(0, 2)), rtol=1e-5)


def test_entropy_is_the_mean_over_queries_beside_the_uniform_null(record, maps):
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(np.where(maps > 0, maps * np.log(maps), 0), axis=-1)
    drawn = lines(figures.entropy_by_layer(record))
    np.testing.assert_allclose(drawn["heads"], entropy.mean(axis=(0, 3)).ravel(), rtol=1e-4)
    np.testing.assert_allclose(drawn["mean"], entropy.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(drawn["null"], np.mean([np.log(i + 1) for i in range(40)]))


def test_the_distance_profile_is_a_mean_along_the_diagonals(record, maps):
    drawn = lines(figures.distance_profile(record))
    diagonals = [np.diagonal(maps, -d, axis1=3, axis2=4).mean(axis=(0, 2, 3)) for d in range(40)]
    for layer in range(4):
        np.testing.assert_allclose(drawn[f"layer-{layer}"], [d[layer] for d in diagonals], rtol=1e-4)
    np.testing.assert_allclose(drawn["null"], [harmonic_tail(40, d) for d in range(40)])


@pytest.mark.parametrize("name", CAPTURED)
def test_a_missing_variable_is_an_error_that_names_the_probe(record, name):
    empty = record.drop_vars([str(variable) for variable in record.data_vars])
    with pytest.raises(SinkscopeError, match=r"measure with the probe \w+\("):
        getattr(figures, name)(empty)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURED)
@pytest.mark.parametrize("shape", [(1, 1, 1, 9), (2, 2, 2, 24)])
def test_every_figure_draws_small_records_without_a_warning(name, shape):
    small = synthetic_record(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = getattr(figures, name)(small)
        figure.savefig("/dev/null", format="png")
    inner = [axes for axes in figure.axes if name == "mean_maps" and axes.images]  # labelled along the edges
    assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes if axes not in inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURED)
def test_a_layer_that_was_skipped_is_a_gap_and_no_warning(record, name):
    gap = record.copy(deep=True)
    for variable in gap.data_vars.values():
        if variable.dtype.kind == "f":
            variable[{"layer": 2}] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = getattr(figures, name)(gap)
        figure.savefig("/dev/null", format="png")
    together = {"received_by_position": "mean", "sink_rate_curve": "rate-40", "mass_by_length": "mass"}
    if name in together:  # of all layers that ran
        curve = {line.get_gid(): line.get_ydata() for line in figure.axes[0].lines}
        assert np.isfinite(curve[together[name]]).all()
        return
    assert all(np.isnan(values).all() for values in of_layer(figure, 2))
    drawn = of_layer(figure, 1)
    assert drawn and all(np.isfinite(values).any() for values in drawn)
    assert any(np.isfinite(values).any() for values in of_layer(getattr(figures, name)(record), 2))


def of_layer(figure: Figure, layer: int) -> list[np.ndarray]:
    """What is drawn at a layer: in lines along layers, in rows of cells, in a line or a panel of its own."""
    axes = figure.axes[0]
    lines = {line.get_gid(): line for line in axes.lines if line.get_transform() == axes.transData}
    if axes.get_xlabel() == "layer":
        found = [line.get_ydata()[line.get_xdata() == layer] for line in lines.values()]
    elif axes.get_ylabel() == "layer":
        found = [np.ma.filled(axes.images[0].get_array(), np.nan)[layer]]
    elif f"layer-{layer}" in lines:
        found = [lines[f"layer-{layer}"].get_ydata()]
    else:
        panels = [panel for panel in figure.axes if panel.get_title().startswith(f"layer {layer},")]
        found = [np.ma.filled(panel.images[0].get_array(), np.nan) for panel in panels]
    return [np.asarray(values, float) for values in found]


@pytest.mark.slow
def test_maps_of_any_origin_serve_every_figure_they_have_the_numbers_for():
    record = from_maps(synthetic_maps(sequences=1, layers=2, heads=2, tokens=24)[0])
    drawn = set()
    for name in CAPTURED:
        try:
            drawn.add(getattr(figures, name)(record).name)
        except SinkscopeError as error:
            assert "probe" in str(error)
    assert drawn >= {
        "sink_mass_heatmap", "mass_by_layer", "sink_rate_curve", "received_by_position", "entropy_by_layer",
        "distance_profile",
    }  # fmt: skip


@pytest.mark.slow
def test_an_encoder_gets_its_own_nulls_and_no_distance_profile():
    record = synthetic_record(sequences=2, layers=2, heads=2, tokens=20, causal=False)
    assert lines(figures.entropy_by_layer(record))["null"][0] == pytest.approx(np.log(20))
    np.testing.assert_allclose(lines(figures.received_by_position(record))["null"], 1 / 20)
    assert figures.sink_mass_heatmap(record).axes[1].lines[-1].get_ydata()[0] == pytest.approx(1 / 20)
    with pytest.raises(SinkscopeError, match="causal"):
        figures.distance_profile(record)


@pytest.mark.slow
def test_sequences_of_different_lengths_and_missing_heads_are_left_out_not_counted_as_zero(record):
    ragged = record.copy(deep=True)
    ragged["length"] = ("sequence", np.array([40, 40, 25]))
    ragged["distance_mass"][2, :, :, 25:] = np.nan
    ragged["entropy"][:, 0, 2] = np.nan
    drawn = lines(figures.entropy_by_layer(ragged))
    assert np.isnan(drawn["heads"][2])
    np.testing.assert_allclose(drawn["mean"][0], record["entropy"].values[:, 0, :2].astype(float).mean(), rtol=1e-5)
    far = lines(figures.distance_profile(ragged))["layer-1"][30]
    expected = record["distance_mass"].values[:2, 1, :, 30].sum() / (2 * 3 * 10)
    assert far == pytest.approx(expected, rel=1e-5)


def test_out_of_range_choices_are_errors_that_say_what_there_is(record):
    for call in (
        lambda: figures.sink_mass_heatmap(record, first=9),
        lambda: figures.mean_maps(record, heads=[(99, 0)]),
        lambda: figures.mean_maps(record, heads=[]),
        lambda: figures.received_by_position(record, sequence=7),
        lambda: figures.norms(record, first=40),
    ):
        with pytest.raises(SinkscopeError, match=r"\d"):
            call()
