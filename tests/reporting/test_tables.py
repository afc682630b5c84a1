"""The numbers a report states, worked out again from the maps in plain numpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sinkscope.analysis.costs import with_costs
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.document import Report
from tests.support import naive_record, naive_streaming
from tests.support.loss_records import collapsing
from tests.support.synthetic import synthetic_maps, synthetic_record

T = naive_record.SHAPE["tokens"]


@pytest.fixture(scope="module")
def report() -> Report:
    return Report({"text": synthetic_record(**naive_record.SHAPE), "short": synthetic_record(4, 3, 2, 16, seed=5)})


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return naive_record.maps()


def row(report: Report, quantity: str):
    return report.tables["summary"].set_index("quantity").loc[quantity]


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 4])
def test_mass_its_interval_and_its_null(report, maps, first):
    found = row(report, "mass on the first token" if first == 1 else "mass on the first 4 tokens")
    each = maps[:, :, :, first:, :first].sum(-1).mean(axis=(1, 2, 3))
    assert found.value == pytest.approx(each.mean(), rel=1e-5)
    bounds = stats.t.interval(0.95, len(each) - 1, each.mean(), stats.sem(each))
    np.testing.assert_allclose([found.lower, found.upper], bounds, rtol=1e-4)
    null = np.mean([first / (i + 1) for i in range(first, T)])
    assert found.null == pytest.approx(null, rel=1e-6)
    assert found.above_null == pytest.approx((each.mean() - null) / (1 - null), rel=1e-5)


@pytest.mark.slow
def test_the_sink_rates_name_their_own_record(report, maps):
    found = row(report, "sink rate")
    assert found.value == pytest.approx((maps[:, :, :, :, 0].mean(-1) > 0.3).mean())
    assert f"T = {T}" in found.note and f"{sum(1 / (i + 1) for i in range(T)) / T:.4f}" in found.note
    short = row(report, "sink rate, published setting")
    assert short.value == pytest.approx((synthetic_maps(4, 3, 2, 16, seed=5)[..., 0].mean(-1) > 0.3).mean())
    assert short.measured_on == "4 × 16 tokens"


def test_entropy_value_norms_and_the_largest_activation(report, maps):
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(maps > 0, maps * np.log(maps), 0).sum(-1).mean()
    assert row(report, "entropy of attention").value == pytest.approx(entropy, rel=1e-5)
    assert row(report, "entropy of attention").null == pytest.approx(np.log(np.arange(1, T + 1)).mean())
    values = report.records["text"]["value_norm"].values.astype(float)
    ratio = (values[..., 0] / values[..., 1:].mean(-1)).mean()
    assert row(report, "value norm, first token over the rest").value == pytest.approx(ratio, rel=1e-5)
    largest = report.records["text"]["activation_max"].values.max()
    assert row(report, "largest activation").value == pytest.approx(largest)


def test_mass_by_layer_and_the_strongest_heads(report, maps):
    table = report.tables["mass_by_layer"]
    np.testing.assert_allclose(table[table["first"] == 1]["mean"], maps[:, :, :, 1:, 0].mean(axis=(0, 2, 3)), rtol=1e-5)
    heads = report.tables["top_heads"]
    mass = maps[:, :, :, 1:, 0].mean(axis=(0, 3))
    assert list(heads["mass"]) == sorted(heads["mass"], reverse=True)
    for found in heads.itertuples():
        assert found.mass == pytest.approx(mass[found.layer, found.head], rel=1e-5)
    assert len(heads) == mass.size


def test_layers_are_called_by_their_numbers_in_the_model(report):
    numbered = report.records["text"].assign_coords(layer=[2, 5, 11])  # as in a hybrid, or a selection of layers
    tables, plain = Report(numbered).tables, report.tables
    pd.testing.assert_frame_equal(
        tables["mass_by_layer"], plain["mass_by_layer"].assign(layer=[2, 5, 11] * 2), check_dtype=False
    )
    notes = [each["summary"].set_index("quantity").loc["largest activation", "note"] for each in (plain, tables)]
    at = int(notes[0].split("after layer ")[1][0])
    assert notes[1] == notes[0].replace(f"after layer {at}", f"after layer {[2, 5, 11][at]}")


def test_the_table_of_sink_rates(report, maps):
    table = report.tables["sink_rate"]
    for found in table[(table["record"] == "text")].itertuples():
        alpha = maps[:, :, :, : found.length, 0].mean(-1)
        assert found.rate == pytest.approx((alpha > found.epsilon).mean(), abs=1e-6)
        assert found.null_alpha == pytest.approx(sum(1 / (i + 1) for i in range(found.length)) / found.length)
    assert set(table["record"]) == {"text", "short"}


@pytest.mark.slow
def test_the_headline_states_the_mass_the_null_and_the_rate(report, maps):
    each = maps[:, :, :, 1:, 0].mean(axis=(1, 2, 3))
    null = np.mean([1 / (i + 1) for i in range(1, T)])
    above = 100 * (each.mean() - null) / (1 - null)
    assert f"3 layers × 2 heads the first token (BOS) takes {above:.1f}% [" in report.headline
    assert f"{100 * each.mean():.1f}% of all attention, where uniform attention would give it {100 * null:.1f}%" in (
        report.headline
    )
    assert "of the attention above the uniform null (95%, over 3 sequences)" in report.headline
    assert report.headline.endswith(f"% of heads give it α > 0.3 (T = {T}).")


@pytest.mark.slow
def test_one_sequence_gives_numbers_without_intervals():
    one = Report(synthetic_record(sequences=1, layers=2, heads=2, tokens=20))
    assert "[" not in one.headline
    assert one.tables["summary"]["lower"].isna().all()


def test_a_partial_record_gives_what_it_can():
    report = Report(naive_record.norms_only())
    assert list(report.figures) == ["norms"]
    assert list(report.tables) == ["summary", "value_drain"]
    assert "no sink mass" in report.headline
    with pytest.raises(KeyError):
        report.tables["top_heads"]
    with pytest.raises(KeyError):
        report.figures["mean_maps"]


def test_an_encoder_gives_a_reduced_report():
    report = Report(synthetic_record(sequences=2, layers=2, heads=2, tokens=20, causal=False))
    assert not {"sink_rate_curve", "distance_profile"} & set(report.figures)
    assert "sink_rate" not in report.tables
    assert row(report, "mass on the first token").null == pytest.approx(1 / 20)
    assert "α" not in report.headline


@pytest.mark.slow
def test_sentences_serve_the_mean_maps_before_the_text_does():
    text, sentences = synthetic_record(**naive_record.SHAPE), synthetic_record(5, 3, 2, 16, seed=9)
    figure = Report({"text": text, "sentences": sentences}).figures["mean_maps"]
    drawn = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    np.testing.assert_array_equal(drawn, sentences["mean_logit"].values[0, 0])


def streamed() -> Report:
    return Report({"text": naive_record.norms_only(), **naive_streaming.records()})


def late_losses() -> np.ndarray:
    """[policy, token] from the first token on that a cache of 64 has evicted something for."""
    return streamed().records["perplexity"]["nll"].values[:, 0, 66:].astype(float)


def test_perplexities_are_of_every_token_after_the_first_eviction_and_then_of_those_sampled():
    table, late = streamed().tables["perplexity"], late_losses()
    every = table[table["scored_at"] == "every token"].set_index("policy")
    assert list(every.index) == ["dense", "window 64", "sinks 4+60"]
    np.testing.assert_allclose(every["ppl"], np.exp(late[[0, 1, 3]].mean(1)), rtol=1e-6)
    assert set(every["ratio_to"]) == {"dense"} and set(every["tokens"]) == {late.shape[1]}
    sampled = table[table["scored_at"] == "the tokens sampled"].set_index("policy")
    there = np.isfinite(late[2])
    np.testing.assert_allclose(sampled["ppl"], np.exp(late[:, there].mean(1)), rtol=1e-6)
    assert set(sampled["ratio_to"]) == {"recompute 64"} and set(sampled["tokens"]) == {there.sum()}


def test_the_four_policies_stand_beside_each_other_with_a_sampled_one_estimated():
    table, late = streamed().tables["four_policies"].set_index("policy"), late_losses()
    assert list(table["cost"]) == ["O(T²)", "O(T·L)", "O(T·L²)", "O(T·L)"]
    assert list(table["kv_memory"]) == ["O(T)", "O(L)", "O(L)", "O(L)"]
    np.testing.assert_allclose(table["ppl"].to_numpy()[[0, 1, 3]], np.exp(late[[0, 1, 3]].mean(1)), rtol=1e-6)
    there = np.isfinite(late[2])
    estimates = [np.exp(late[o].mean() + (late[2] - late[o])[there].mean()) for o in (0, 1, 3)]
    found = table.loc["recompute 64"]
    assert min(abs(found.ppl / estimate - 1) for estimate in estimates) < 1e-6
    assert found.low < found.ppl < found.high
    nearest = table.loc["sinks 4+60"]
    assert np.log(found.high / found.low) > 0.99 * np.log(nearest.high / nearest.low)


def test_a_policy_that_scored_every_token_is_not_estimated():
    curve = with_costs(collapsing(sequences=1), naive_streaming.costs())
    report = Report({"text": naive_record.norms_only(), "perplexity": curve})
    assert set(report.tables["perplexity"]["scored_at"]) == {"every token"}
    expected = np.exp(curve["nll"].values[2, 0, 66:].astype(float).mean())
    assert report.tables["four_policies"]["ppl"][2] == pytest.approx(expected, rel=1e-6)


def test_the_second_sentence_states_collapse_recovery_and_recomputation():
    report, late = streamed(), late_losses()
    dense, window, sinks = (np.exp(late[row].mean()) for row in (0, 1, 3))
    there = np.isfinite(late[2])
    again = np.exp((late[2] - late[3])[there].mean())
    assert report.headline.endswith(
        f"With a cache of 64 tokens, perplexity goes from {dense:,.1f} (dense) to {window:,.1f} in a window that drops "
        f"the first tokens, and is {sinks:,.1f} where 4 of them stay as sinks; re-computing the window for each token "
        f"gives {again:.2f} times that ({there.sum()} tokens sampled)."
    )
    found = row(report, "perplexity ratio, without / with sinks")
    assert found.value == pytest.approx(window / sinks, rel=1e-6) and found.lower < found.value < found.upper
    assert found.null == 1 and "not re-computation" in found.note


def test_a_record_without_costs_or_without_eviction_gives_what_it_can():
    curve = collapsing(sequences=1, tokens=60)
    report = Report({"text": naive_record.norms_only(), "perplexity": curve})
    assert "four_policies" not in report.tables and "ablation" not in report.tables
    np.testing.assert_allclose(report.tables["perplexity"]["ppl"], np.exp(curve["nll"].mean(["sequence", "token"])))
    dense = Report({"text": naive_record.norms_only(), "perplexity": curve.sel(policy=["dense"])})
    assert "cache" not in dense.headline and "log_perplexity" in dense.figures
    assert list(dense.tables["perplexity"]["policy"]) == ["dense"]


def test_records_a_report_does_not_know_are_refused():
    with pytest.raises(SinkscopeError, match="text"):
        Report({"short": naive_record.norms_only()})
    with pytest.raises(SinkscopeError, match="novel"):
        Report({"text": naive_record.norms_only(), "novel": naive_record.norms_only()})
