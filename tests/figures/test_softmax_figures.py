"""What the figures of the softmax laboratory draw, read back from their artists, against records in plain numpy."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.stats import spearmanr

from sinkscope import figures
from sinkscope.analysis.interventions import dose_table, intervention_table
from sinkscope.analysis.perplexity import collapse_table
from sinkscope.analysis.predictability import predictability_table
from sinkscope.errors import SinkscopeError
from sinkscope.figures.interventions import sides
from tests.figures.records import EXPERIMENTS, comparison_table, drawn
from tests.support import experiments


def artists(axes) -> dict[str, object]:
    return {each.get_gid(): each for each in axes.get_children() if each.get_gid()}


def xs(axes, gid: str) -> np.ndarray:
    return np.asarray(artists(axes)[gid].get_xdata(), float)


def ys(axes, gid: str) -> np.ndarray:
    return np.asarray(artists(axes)[gid].get_ydata(), float)


def spans(axes, gid: str, column: int) -> np.ndarray:
    """[whisker, lower and upper] along x (0) or y (1)."""
    return np.array([segment[:, column] for segment in artists(axes)[gid].get_segments() if len(segment)])


@pytest.mark.slow
def test_forced_mass_shows_the_geometric_mean_by_head_and_the_uniform_null():
    record = experiments.forced()
    heat, _, bar = figures.forced_mass(record).axes
    logs = record["log_amplification"].values.astype(float)
    np.testing.assert_allclose(heat.images[0].get_array(), np.exp(np.nanmean(logs, axis=(0, 3))), rtol=1e-5)
    null = np.exp(np.mean([-np.log(1 - 4 / (i + 1)) for i in range(4, 40)]))
    assert artists(bar)["null"].get_ydata()[0] == pytest.approx(null)
    assert heat.images[0].norm.vmin == 1 and bar.get_ylabel().startswith("amplification")


@pytest.mark.slow
def test_a_head_that_parks_everything_does_not_take_the_scale_for_itself():
    record = experiments.forced()
    record["log_amplification"][:, 1, 1, 4:] = 17.0
    heat, _, _ = figures.forced_mass(record).axes
    assert heat.images[0].norm.vmax == 100 and "2.42 × 10⁷" in heat.get_title(loc="left")


@pytest.mark.slow
def test_forced_mass_shows_change_denominator_and_value_over_the_output_of_each_layer():
    record = experiments.forced()
    parts = figures.forced_mass(record).axes[1]
    output = record["output_norm"].values.astype(float)
    for line, name in (("change", "change_norm"), ("lost_denominator",) * 2, ("lost_value",) * 2):
        each = np.nanmean(record[name].values.astype(float), axis=(2, 3)) / np.nanmean(output, axis=(2, 3))
        np.testing.assert_allclose(ys(parts, line), each.mean(0), rtol=1e-5)
        assert f"band-{line}" in artists(parts)
    assert parts.get_ylim()[0] == 0


def test_forced_mass_without_norms_has_one_panel_and_without_amplification_is_refused():
    record = experiments.forced()
    assert len(figures.forced_mass(record[["log_amplification"]]).axes) == 2  # the map and its scale
    with pytest.raises(SinkscopeError, match=r"EvictionEffect\("):
        figures.forced_mass(record[["output_norm"]])


@pytest.mark.slow
def test_the_null_is_of_as_many_keys_as_the_probe_evicted():
    record = experiments.forced(keys=1)
    bar = figures.forced_mass(record).axes[2]
    null = np.exp(np.mean([-np.log(1 - 1 / (i + 1)) for i in range(1, 40)]))
    assert artists(bar)["null"].get_ydata()[0] == pytest.approx(null)
    record.attrs.pop("probes")  # then they are all before the first query measured
    assert artists(figures.forced_mass(record).axes[2])["null"].get_ydata()[0] == pytest.approx(null)


@pytest.mark.slow
def test_collapse_draws_the_ratios_with_their_paired_intervals_and_says_how_much_of_the_gap_each_closes():
    record = experiments.collapse()
    table = collapse_table(record)
    axes = figures.collapse(record).axes[0]
    for row, each in enumerate(table.itertuples()):
        assert xs(axes, each.part)[0] == pytest.approx(each.ratio) and ys(axes, each.part)[0] == row
        np.testing.assert_allclose(spans(axes, f"across-{each.part}", 0), [[each.ratio_low, each.ratio_high]])
    assert axes.get_xscale() == "log" and xs(axes, "full").tolist() == [1, 1]
    shown = artists(axes)["text-phantom, values zeroed"].get_text()
    assert shown.endswith(f"closes {100 * table['recovered'][2]:.0f}%") and "closes −" in _text(axes, 1)
    assert "closes" not in _text(axes, 0) and "closes" not in _text(axes, 4)
    above = axes.child_axes[0]
    assert above.get_xlim() == pytest.approx([edge * table["ppl"][0] for edge in axes.get_xlim()])
    assert artists(figures.collapse(table).axes[0]).keys() == artists(axes).keys()


def _text(axes, row: int) -> str:
    return axes.texts[row].get_text()


def test_where_nothing_collapses_nothing_is_said_to_be_closed():
    axes = figures.collapse(experiments.collapse(lost=(0.0,) * 5)).axes[0]
    assert not any("closes" in text.get_text() for text in axes.texts)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["record", "table"])
def test_dose_response_draws_three_responses_for_sinks_and_control(given):
    record = experiments.dose()
    table = dose_table(record)
    panels = figures.dose_response(record if given == "record" else table).axes
    finite = np.isfinite(experiments.DOSES)
    for axes, column in zip(panels, ("ratio", "sink_mass", "output"), strict=True):
        for arm in ("sinks", "random"):
            own = table[table["arm"] == arm]
            np.testing.assert_array_equal(xs(axes, f"{column}-{arm}"), own["dose"][finite])
            np.testing.assert_allclose(ys(axes, f"{column}-{arm}"), own[column][finite])
            np.testing.assert_allclose(ys(axes, f"{column}-{arm}-gone"), own[column][~finite])
            bounds = "mass" if column == "sink_mass" else column
            np.testing.assert_allclose(
                spans(axes, f"interval-{column}-{arm}-gone", 1), own[[f"{bounds}_low", f"{bounds}_high"]][~finite]
            )
    null = np.mean([1 / (i + 1) for i in range(experiments.START, 60)])
    assert ys(panels[1], "level")[0] == pytest.approx(null) and ys(panels[0], "level")[0] == 1


@pytest.mark.slow
def test_minus_infinity_stands_apart_at_the_left_end_under_its_own_mark():
    axes = figures.dose_response(experiments.dose()).axes[0]
    gone, cut = xs(axes, "ratio-sinks-gone")[0], xs(axes, "cut")[0]
    assert gone < cut < -2
    marks = {label.get_text(): tick for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    assert marks["−∞"] == gone and marks["−2"] == -2 and marks["+2"] == 2 and marks["0"] == 0
    assert "nats" in axes.get_xlabel()


@pytest.mark.slow
def test_doses_close_together_leave_room_for_their_marks_and_zero_keeps_its_own():
    record = experiments.dose().assign_coords(dose=[-np.inf, -0.1, 0.0, 8.0])
    labels = [label.get_text() for label in figures.dose_response(record).axes[0].get_xticklabels()]
    assert labels == ["−∞", "0", "+8"]


@pytest.mark.slow
@pytest.mark.parametrize("given", ["record", "table"])
def test_effects_stand_above_their_controls_beside_what_nothing_and_uniform_attention_give(given):
    record = experiments.interventions()
    table = intervention_table(record)
    loss, mass = figures.effects(record if given == "record" else table).axes
    for role in ("effect", "control"):
        own = table[table["role"] == role]
        for axes, column, bounds in ((loss, "ratio", "ratio"), (mass, "sink_mass", "mass")):
            np.testing.assert_allclose(xs(axes, f"{column}-{role}"), own[column])
            kept = own[[f"{bounds}_low", f"{bounds}_high"]].dropna().to_numpy()
            np.testing.assert_allclose(spans(axes, f"across-{column}-{role}", 0), kept)
    labels = [label.get_text() for label in loss.get_yticklabels()]
    assert labels == table["intervention"].tolist()[1:]
    assert (ys(loss, "ratio-control")[:2] > ys(loss, "ratio-effect")[:2]).all()  # the axis runs downwards
    assert loss.get_ylim()[0] > loss.get_ylim()[1] and loss.get_xscale() == "log"
    assert xs(loss, "none")[0] == 1 and xs(mass, "none")[0] == pytest.approx(table["sink_mass"][0])
    null = np.mean([1 / (i + 1) for i in range(experiments.START, 60)])
    assert xs(mass, "null")[0] == pytest.approx(null)


def test_an_intervention_that_scores_other_tokens_has_no_ratio_and_says_so():
    loss, mass = figures.effects(experiments.interventions()).axes
    assert [text.get_text() for text in loss.texts] == ["no ratio: other tokens"]
    assert np.isnan(xs(loss, "ratio-effect")[-1]) and np.isfinite(xs(mass, "sink_mass-effect")).all()


@pytest.mark.slow
def test_predictability_shows_bins_beside_their_null_and_the_heads_with_the_largest_mass():
    record = experiments.predictability()
    left, _ = figures.predictability(record, bins=5).axes
    mass = record["sink_mass"].values[..., 0].astype(float)[..., experiments.START :]
    order = np.argsort(record["next_entropy"].values[:, experiments.START :].ravel(), kind="stable")
    pieces = np.array_split(order, 5)
    for gid, values in (("mean", mass.mean((1, 2))), ("null", np.tile(1 / np.arange(17, 97), (3, 1)))):
        np.testing.assert_allclose(ys(left, gid), [values.ravel()[piece].mean() for piece in pieces], rtol=1e-5)
    strongest = np.argsort(-mass.mean((0, 3)), axis=None)[:3]
    drawn = [gid for gid in artists(left) if gid.startswith("head-")]
    assert drawn == [f"head-{head // 3}-{head % 3}" for head in strongest]
    layer, head = divmod(strongest[0], 3)
    np.testing.assert_allclose(
        ys(left, drawn[0]), [mass[:, layer, head].ravel()[piece].mean() for piece in pieces], rtol=1e-5
    )


@pytest.mark.slow
def test_the_histogram_holds_every_head_once_and_the_head_that_follows_entropy_lies_below_both():
    record = experiments.predictability()
    _, right = figures.predictability(record).axes
    drawn = {each.get_label().split(":")[0]: each for each in right.containers}
    counts = {name: sum(bar.get_height() for bar in bars) for name, bars in drawn.items()}
    assert sum(counts.values()) == 12
    table = predictability_table(record, start=experiments.START)
    own = table[table["measure"] == "next_entropy"]
    kinds = sides(own)
    assert counts == {f"{kind}{' both' if kind != 'neither' else ''}": (kinds == kind).sum() for kind in
                      ("below", "neither", "above")}  # fmt: skip
    planted = own[(own["layer"] == 3) & (own["head"] == 0)]
    assert kinds[planted.index[0]] == "below" and planted["correlation"].iloc[0] == pytest.approx(-1)
    entropy, late = record["next_entropy"].values[:, experiments.START :], 1 / np.arange(17, 97)
    null = np.mean([spearmanr(row, late).statistic for row in entropy])
    assert xs(right, "null")[0] == pytest.approx(null)


def test_a_head_must_pass_both_zero_and_the_null():
    table = pd.DataFrame(
        {"correlation": [0.2, 0.2, -0.2, -0.2, np.nan], "low": [0.15, 0.05, -0.3, -0.3, np.nan],
         "high": [0.3, 0.3, -0.1, 0.01, np.nan], "null": [0.1] * 5}
    )  # fmt: skip
    assert sides(table).tolist() == ["above", "neither", "below", "neither", "none"]
    assert sides(table.assign(null=-0.15)).tolist() == ["above", "above", "neither", "neither", "none"]


def test_comparison_draws_one_point_for_each_model_with_both_intervals():
    table = comparison_table()
    panels = figures.comparison(table).axes
    for axes, column, bounds in zip(panels, ("sink_rate", "sink_mass"), ("rate", "mass"), strict=True):
        for row, each in enumerate(table.to_dict("records")):
            assert xs(axes, f"model-{row}")[0] == each[column] and ys(axes, f"model-{row}")[0] == each["collapse"]
            np.testing.assert_allclose(
                spans(axes, f"across-model-{row}", 0), [[each[f"{bounds}_low"], each[f"{bounds}_high"]]]
            )
            np.testing.assert_allclose(
                spans(axes, f"interval-model-{row}", 1), [[each["collapse_low"], each["collapse_high"]]]
            )
        assert xs(axes, f"null-{column}")[0] == table[f"{bounds}_null"][0] and ys(axes, "none")[0] == 1
    faces = [artists(panels[0])[f"model-{row}"].get_markerfacecolor() for row in range(3)]
    assert faces[1] == "white" and "white" not in (faces[0], faces[2])
    assert "model-1, cache of 256 (other text)" in panels[0].get_legend_handles_labels()[1]
    assert panels[0].get_yscale() == "log"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_provenance_width_text_size_and_bytes_are_those_of_every_figure(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, again = drawn(name), drawn(name)
        saved = [io.BytesIO(), io.BytesIO()]
        for target, each in zip(saved, (figure, again), strict=True):
            each.savefig(target, format="pdf")
    assert figure.get_figwidth() in (3.25, 6.75)
    assert all(axes.xaxis.label.get_fontsize() == 8 for axes in figure.axes if axes.get_xlabel())
    assert "model" in figure.get_supxlabel() and "2020-02-02" in figure.get_supxlabel()
    assert saved[0].getvalue() == saved[1].getvalue() and b"2020-02-02" in saved[0].getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_label_lies_inside_the_figure_and_no_legend_on_the_data(name):
    figure = drawn(name)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for legend in legends:
        box = legend.get_window_extent(renderer)
        assert not any(box.y0 < panel.y1 - 2 and box.overlaps(panel) for panel in panels)
    labels = [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    for each in [*legends, *(label for label in labels if label.get_text())]:
        box = each.get_window_extent(renderer)
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "record", "over_texts", "over_positions"),
    [
        ("forced_mass", lambda: experiments.forced(1, 1, 1, 12), "change lost_denominator lost_value", ""),
        ("collapse", lambda: experiments.collapse(tokens=400), "", "window"),
        (
            "dose_response",
            lambda: experiments.dose(1, 30, 1, 1, count=3),
            "sink_mass-sinks output-sinks",
            "ratio-sinks",
        ),
        ("effects", lambda: experiments.interventions(1, 120, 1, 1), "sink_mass-effect", "ratio-effect"),
        ("predictability", lambda: experiments.predictability(1, 1, 1, 40), "", "mean"),
        ("comparison", lambda: comparison_table(1), "", "model-0"),
    ],
)
def test_one_text_and_small_models_are_drawn_without_a_warning_or_intervals_over_texts(
    name, record, over_texts, over_positions
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = getattr(figures, name)(record())
        figure.savefig(io.BytesIO(), format="png")
    drawn_here = {gid for axes in figure.axes for gid in artists(axes)}
    for own, there in ((over_texts, False), (over_positions, True)):
        for gid in own.split():
            assert gid in drawn_here
            assert any(f"{kind}-{gid}" in drawn_here for kind in ("band", "interval", "across")) == there


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.collapse(experiments.dose()), "no nll"),
        (
            lambda: figures.collapse(collapse_table(experiments.collapse()).drop(columns="part")),
            "part is missing",
        ),
        (lambda: figures.dose_response(experiments.collapse()), "no arm and dose"),
        (
            lambda: figures.dose_response(dose_table(experiments.dose()).drop(columns="output")),
            "output is missing",
        ),
        (lambda: figures.effects(experiments.collapse()), "not one of interventions"),
        (lambda: figures.effects(intervention_table(experiments.interventions()).iloc[:1]), "at least one row"),
        (lambda: figures.predictability(experiments.forced()), r"sinkscope\.predictability"),
        (lambda: figures.comparison(comparison_table().drop(columns="collapse")), "collapse is missing"),
        (lambda: figures.comparison(comparison_table().iloc[:0]), "at least one row"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, words):
    with pytest.raises(SinkscopeError, match=words):
        draw()
