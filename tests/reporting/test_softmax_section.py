"""The softmax section: its sentences and tables against the records in plain numpy, and drawn again from disk."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sinkscope.analysis.interventions import dose_table, intervention_table
from sinkscope.analysis.perplexity import collapse_table
from sinkscope.analysis.predictability import predictability_table, sides
from sinkscope.figures.style import number, within
from sinkscope.reporting.document import Report
from sinkscope.reporting.page import description, page
from sinkscope.reporting.softmax import SOFTMAX
from tests.reporting import naive_softmax
from tests.support import experiments, naive_record, naive_streaming


@pytest.fixture(scope="module")
def report() -> Report:
    return Report({"text": naive_record.norms_only(), **naive_softmax.records()})


def alone(name: str, record) -> Report:
    return Report({"text": naive_record.norms_only(), name: record})


@pytest.mark.slow
def test_the_records_give_their_figures_and_tables_and_no_others(report):
    assert [name for name in report.figures if name != "norms"] == list(naive_softmax.FIGURES)
    assert [name for name in report.tables if name not in ("summary", "value_drain")] == list(naive_softmax.TABLES)
    without = Report({"text": naive_record.norms_only(), **naive_streaming.records()})
    assert not {*naive_softmax.FIGURES} & {*without.figures}
    assert not any(without.finding(name) for name in without.figures)


@pytest.mark.slow
def test_a_finding_is_made_for_every_figure_of_the_section(report):
    assert [item.name for item in SOFTMAX.items if item.sentence] == list(naive_softmax.FIGURES)
    for name in naive_softmax.FIGURES:
        said = report.finding(name)
        assert said.endswith(".") and "nan" not in said and "inf" not in said
    assert report.finding("norms") == ""


def test_the_forced_mass_is_stated_as_the_geometric_mean_with_its_null_and_the_heads_that_park_most(report):
    logs = report.records["forced"]["log_amplification"].values.astype(float)[..., 4:]
    null = np.exp(np.mean([-np.log(1 - 4 / (i + 1)) for i in range(4, 40)]))
    strong = (np.exp(logs.mean((0, 3))) >= 10).sum()
    said = report.finding("forced_mass")
    assert f"multiplied by {number(np.exp(logs.mean()))} [" in said and f"uniform attention: {number(null)})" in said
    assert f"10 or more in {strong} of 12 heads" in said and "Without the first 4 tokens" in said
    # by construction a lost denominator is 1.2 long and a lost value 0.6, to a fifth
    assert "the longer part in 4 of 4 layers and the lost value in 0" in said


def test_the_shares_of_the_collapse_are_those_of_the_table_with_their_intervals(report):
    table = collapse_table(report.records["collapse"]).set_index("part")
    said = report.finding("collapse")
    for part in ("phantom, values zeroed", "phantom, mean values", "values only"):
        row = 100 * table.loc[part, ["recovered", "recovered_low", "recovered_high"]].astype(float)
        shown = f"{row.iloc[0]:.0f}% [{row.iloc[1]:.0f}, {row.iloc[2]:.0f}]".replace("-", "−")
        assert shown in said
    window = table.loc["window"]
    assert within(window["ratio"], window["ratio_low"], window["ratio_high"]) in said
    assert "334 tokens" in said and "below zero is worse than the window" in said


def test_where_nothing_collapses_no_share_is_stated():
    report = alone("collapse", experiments.collapse(lost=(0.0,) * 5))
    assert report.finding("collapse").endswith("no gap that could be divided.") and "%" not in report.finding(
        "collapse"
    )
    assert not report.tables["summary"]["quantity"].str.contains("collapse").any()


def test_a_collapse_that_no_part_makes_worse_says_nothing_of_worse():
    report = alone("collapse", experiments.collapse(lost=(0.0, 0.3, 0.2, 0.4, 1.0)))
    assert "worse" not in report.finding("collapse")


def test_doses_are_stated_at_both_ends_beside_the_control(report):
    table = dose_table(report.records["dose"])
    said = report.finding("dose_response")
    for arm in ("sinks", "random"):
        for dose in (-np.inf, 2.0):
            (row,) = table[(table["arm"] == arm) & (table["dose"] == dose)].to_dict("records")
            assert within(row["ratio"], row["ratio_low"], row["ratio_high"]) in said
    assert "With the first token gone" in said and "a dose of +2" in said and "a random token" in said


def test_effects_are_sorted_by_what_their_intervals_exclude(report):
    table = intervention_table(report.records["interventions"]).set_index("intervention")
    said = report.finding("effects")
    row = table.loc["evict sinks"]
    shown = within(row["over_control"], row["over_control_low"], row["over_control_high"])
    assert f"higher than under the control, by the factor given, for: evict sinks {shown}." in said
    assert said.endswith("Neither told apart from the control nor shown to equal it within 2%: start 4 later.")
    assert "shuffle" not in said  # scores other tokens: nothing to compare


@pytest.mark.slow
def test_an_effect_is_equal_to_its_control_only_where_the_whole_interval_lies_within_the_margin():
    record = experiments.interventions()
    random = np.random.default_rng(0)
    for spread, words in ((0.02, "Equal to that under the control, to within 2%, for: "), (0.3, "Neither told apart")):
        nll = record["nll"].copy(deep=True)
        nll[3] = nll[4] + random.normal(0, spread, nll[4].shape)  # of the effect, and of its control
        report = alone("interventions", record.assign(nll=nll))
        table = intervention_table(report.records["interventions"]).set_index("intervention").loc["start 4 later"]
        within_margin = table["over_control_low"] >= 1 / 1.02 and table["over_control_high"] <= 1.02
        assert within_margin == (spread == 0.02) and table["over_control_low"] < 1 < table["over_control_high"]
        assert words in report.finding("effects") and report.finding("effects").endswith("start 4 later.")


def test_predictability_is_stated_with_the_heads_on_either_side_and_what_chance_would_give(report):
    record = report.records["predictability"]
    table = predictability_table(record, start=experiments.START)
    kinds = sides(table[table["measure"] == "next_entropy"])
    said = report.finding("predictability")
    assert f"Of 12 heads, {(kinds == 'below').sum()} give the first token less" in said
    assert f"and {(kinds == 'above').sum()} more" in said and "up to 0.6 would by chance" in said
    told = table[(table["measure"] == "next_entropy") & (table["q"] <= 0.05)]
    assert len(told) and f"median |ρ| of {told['correlation'].abs().median():.2f}" in said
    numbers = report.tables["predictability"].set_index("measure")
    assert numbers.loc["entropy", ["below", "neither", "above"]].sum() == 12
    quartiles = table[table["measure"] == "next_loss"]["correlation"].quantile([0.25, 0.5, 0.75])
    np.testing.assert_allclose(
        numbers.loc["loss", ["lower_quartile", "median", "upper_quartile"]].astype(float), quartiles
    )


def test_the_strongest_heads_come_first_with_both_correlations(report):
    table = report.tables["predictability_heads"]
    mass = report.records["predictability"]["sink_mass"].values[..., 0].astype(float)[..., experiments.START :]
    mean = mass.mean((0, 3))
    assert table["sink_mass"].is_monotonic_decreasing and len(table) == 12
    for row in table.to_dict("records"):
        assert row["sink_mass"] == pytest.approx(mean[int(row["layer"]), int(row["head"])], rel=1e-5)
        assert row["entropy_low"] <= row["entropy_high"] and row["loss_low"] <= row["loss_high"]


def test_the_summary_has_the_amplification_and_what_halves_of_sinks_close(report):
    summary = report.tables["summary"].set_index("quantity")
    logs = report.records["forced"]["log_amplification"].values.astype(float)[..., 4:]
    found = summary.loc["other weights without the first 4 tokens"]
    assert found.value == pytest.approx(np.exp(logs.mean()), rel=1e-6) and found.lower < found.value < found.upper
    table = collapse_table(report.records["collapse"]).set_index("part")
    found = summary.loc["share of the collapse recovered by phantom sinks (values zeroed)"]
    assert found.value == pytest.approx(table.loc["phantom, values zeroed", "recovered"])


@pytest.mark.slow
def test_one_text_gives_sentences_without_intervals_over_texts():
    records = {
        "forced": experiments.forced(sequences=1),
        "predictability": experiments.predictability(sequences=1),
    }
    report = Report({"text": naive_record.norms_only(), **records})
    said = report.finding("forced_mass")
    assert "[" not in said and "longer part" not in said  # there are no intervals that could stay apart
    assert "Of 12 heads" in report.finding("predictability")


def test_an_encoder_and_a_model_that_hides_its_outputs_give_what_they_can():
    report = alone("forced", experiments.forced()[["log_amplification"]])
    assert "forced_mass" in report.figures and "forced_mass" not in report.tables
    assert "lost denominator" not in report.finding("forced_mass")
    assert "forced_mass" not in alone("forced", experiments.forced().assign_attrs(causal=0)).figures


@pytest.mark.slow
def test_the_page_has_the_section_with_its_sentences_captions_and_plots(report):
    text = re.sub(r"<script.*?</script>", "", page(report.content, []), flags=re.S)
    assert "Why sinks: what sum-to-one forces" in text and "What it costs to forget" not in text
    for name in naive_softmax.FIGURES:
        assert f'id="plot-{name}"' in text and f'href="#{name}"' in text
        plain = text.replace("&#39;", "'").replace("&gt;", ">").replace("&lt;", "<")
        assert report.finding(name) in plain and report.content.items[name].meaning in plain
    for words in ("Phantom", "Values only", "nothing is re-computed", "uniform causal attention", "as control"):
        assert words in text


def test_captions_state_definitions_and_leave_conclusions_to_the_numbers():
    for item in SOFTMAX.items:
        assert not re.search(r"\b(proves?|shows? that|because|therefore|causes?|explains?)\b", item.meaning), item.name


@pytest.mark.slow
def test_the_interactive_figures_hold_the_numbers_of_the_printed_ones(report):
    records = report.records
    drawn = {
        name: description(report.content.items[name], report.content.source(name)) for name in naive_softmax.FIGURES
    }
    heat = drawn["forced_mass"]["data"][0]
    logs = records["forced"]["log_amplification"].values.astype(float)[..., 4:].mean((0, 3))
    np.testing.assert_allclose(heat["customdata"], np.exp(logs), rtol=1e-4)
    np.testing.assert_allclose(heat["z"], np.minimum(logs / np.log(10), 2), atol=1e-4)
    table = collapse_table(records["collapse"])
    points = [trace["x"][0] for trace in drawn["collapse"]["data"] if trace["mode"] == "markers"]
    np.testing.assert_allclose(points, table["ratio"], rtol=1e-6)
    doses = dose_table(records["dose"])
    line = next(trace for trace in drawn["dose_response"]["data"] if trace.get("name") == "bias on the first token")
    own = doses[(doses["arm"] == "sinks") & np.isfinite(doses["dose"])]
    np.testing.assert_allclose(line["y"], own["ratio"], rtol=1e-4)
    effects = intervention_table(records["interventions"])
    own = effects[effects["role"] == "control"]
    trace = next(
        trace for trace in drawn["effects"]["data"] if trace.get("xaxis") == "x2" and trace["name"] != "intervention"
    )
    np.testing.assert_allclose(trace["x"], own["sink_mass"], rtol=1e-4)
    bars = [trace for trace in drawn["predictability"]["data"] if trace["type"] == "bar"]
    assert sum(sum(trace["y"]) for trace in bars) == 12


@pytest.mark.usefixtures("one_format")
@pytest.mark.slow
def test_everything_is_drawn_again_from_the_saved_records(report, tmp_path):
    out = report.save(tmp_path / "out", progress=False)
    again = Report.open(out)
    assert list(again.records) == list(report.records)
    for name in naive_softmax.TABLES:
        pd.testing.assert_frame_equal(again.tables[name], report.tables[name])
        assert (out / "tables" / f"{name}.tex").read_text().count(r"\\") == len(report.tables[name]) + 1
    for name in naive_softmax.FIGURES:
        assert again.finding(name) == report.finding(name)
        drawn = [io.BytesIO(), io.BytesIO()]
        for target, each in zip(drawn, (report, again), strict=True):
            each.figures[name].savefig(target, format="png", metadata={"Description": ""})
        assert drawn[0].getvalue() == drawn[1].getvalue(), name
    assert r"$-$$\infty$" in (out / "tables" / "dose_response.tex").read_text()
    code = (
        "import sys; from sinkscope import Report; report = Report.open(sys.argv[1]);"
        "[(report.figures[name], report.finding(name)) for name in report.figures];"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code, out], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["next_entropy", "sink_mass"])
def test_masses_or_entropies_that_are_all_the_same_are_told_to_have_no_correlation(name):
    record = experiments.predictability()
    same = record.assign(
        {name: xr.ones_like(record[name]).where(record[name].notnull()).assign_attrs(record[name].attrs)}
    )
    made = Report({"text": naive_record.norms_only(), "predictability": same})
    assert made.finding("predictability").endswith("is the same at every query.")
    assert not made.finding("predictability").startswith("No head")
