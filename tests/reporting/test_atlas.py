"""Many models in one table and on one page, and what differs between two reports."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import sinkscope
from sinkscope import Report, SinkscopeError, atlas, compare, compare_reports, strength_and_collapse
from sinkscope.analysis.atlas import FEWEST_MODELS, atlas_table, differences, same_tokens, vocabularies
from sinkscope.reporting import atlas as reporting
from sinkscope.reporting.atlas_section import ATLAS, stored
from tests.analysis.test_compare import captured, streamed
from tests.fuzz import world
from tests.support.loss_records import collapsing
from tests.support.synthetic import synthetic_maps


def spoken(record: xr.Dataset, shift: int = 0) -> xr.Dataset:
    """With token ids, the same for all records of one shift."""
    dims = ("sequence", "token")
    ids = np.arange(record.sizes["sequence"] * record.sizes["token"]).reshape([record.sizes[dim] for dim in dims])
    return record.assign_coords(token_id=(dims, ids + shift), length=("sequence", [ids.shape[1]] * len(ids)))


def records(model: str, seed: int = 0, shift: int = 0) -> dict[str, xr.Dataset]:
    main = spoken(captured(model, seed=seed), shift).assign_attrs(text="a text")
    return {"text": main, "perplexity": spoken(streamed(model, seed=seed), shift)}


@pytest.fixture(scope="module")
def three():
    return {"one": records("a/one"), "two": records("a/two", 1), "other": records("b/other", 2, shift=7)}


@pytest.mark.slow
def test_the_atlas_has_what_compare_has_and_says_what_is_missing(three):
    table = atlas_table(three)
    beside = compare([tuple(own.values()) for own in three.values()])
    for name in ("sink_mass", "mass_low", "sink_rate", "collapse", "collapse_high", "T", "cache_size"):
        np.testing.assert_allclose(table[name], beside[name], rtol=1e-6)
    assert table["published_rate"].isna().all() and table["missing"].str.contains("no record `short`").all()
    assert table["tokens_as"].tolist() == ["one", "one", "other"]


@pytest.mark.slow
def test_models_of_other_tokens_are_told_in_one_sentence_and_those_of_the_same_are_not(three):
    said = vocabularies(atlas_table(three))
    assert said.count(".") == 1 and "one, two / other" in said and "cannot be compared" in said
    assert vocabularies(atlas_table({name: three[name] for name in ("one", "two")})) == ""
    assert not same_tokens(three["one"]["text"].drop_vars("token_id"), three["two"]["text"])  # nothing is known


@pytest.mark.slow
def test_a_short_record_gives_the_published_rate(three):
    short = spoken(sinkscope.from_maps(synthetic_maps(20, 3, 2, 32, seed=5)))
    (row,) = atlas_table({"one": three["one"] | {"short": short}}).to_dict("records")
    expected = (synthetic_maps(20, 3, 2, 32, seed=5)[..., 0].mean(-1) > 0.3).mean()
    assert row["published_rate"] == pytest.approx(expected) and row["published_T"] == 32
    assert row["published_low"] <= expected <= row["published_high"]


@pytest.mark.usefixtures("one_format")
@pytest.mark.slow
def test_the_page_is_saved_and_opens_by_itself(three, tmp_path):
    reports = [Report(own) for own in three.values()]
    made = atlas(reports, progress=False)
    assert made.tables["atlas"]["model"].tolist() == ["a/one", "a/two", "b/other"]
    assert set(made.tables["headline"]["model"]) == {"a/one", "a/two", "b/other"}
    assert f"fewer than {FEWEST_MODELS}" in made.finding("atlas") and "same tokens" in made.finding("atlas")
    assert "3 models: the first token takes" in made.headline and "times that with them" in made.headline
    folder = made.save(tmp_path / "atlas", progress=False)
    again = Report.open(folder)
    pd.testing.assert_frame_equal(again.tables["atlas"], made.tables["atlas"], check_dtype=False)
    page = (folder / "report.html").read_text()
    assert "Not all of these models read the same tokens" in page and "Table 2" in page and "mass_by_layer" not in page
    assert "0 rows" not in page and 'aria-label="Headline numbers"' not in page  # an atlas has no summary of its own
    assert 'report.tables["atlas"]' in page and "<h3>Models side by side" not in page
    made.save(folder, progress=False)  # replaces what is its own


@pytest.mark.slow
def test_saved_reports_are_opened_and_two_of_one_name_are_told_apart(three, tmp_path):
    saved = Report(three["one"]).save(tmp_path / "one", prints=False, progress=False)
    found = atlas([saved, str(saved)], progress=False).tables["atlas"]
    assert found["model"].tolist() == ["a/one", "a/one (2)"]
    named = atlas({"mine": saved}, progress=False).tables["atlas"]
    assert named["model"].tolist() == ["mine"]


@pytest.mark.slow
def test_values_that_show_alike_are_said_once(three):
    alike = atlas([Report(three["one"]), Report(three["one"])], progress=False).headline
    apart = atlas([Report(three["one"]), Report(three["two"])], progress=False).headline
    assert "% to " not in alike and "perplexity is" in alike and "% to " in apart


def models(count: int, slope: float = 1.0, noise: float = 0.12) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(0, noise, count)
    mass = np.linspace(0.1, 0.6, count)
    return pd.DataFrame({"differs": "", "sink_mass": mass, "collapse": np.exp(slope * mass + noise)})


def test_a_rank_correlation_has_an_interval_and_few_models_none():
    found, table = strength_and_collapse(models(20)), models(20)
    assert found["rho"] == pytest.approx(stats.spearmanr(table["sink_mass"], table["collapse"]).statistic)
    assert found["low"] < found["rho"] < found["high"] < 1 and found["n"] == 20
    assert strength_and_collapse(models(20, -1))["high"] < 0
    nearly = strength_and_collapse(models(20, noise=0.001))
    assert nearly["rho"] > 0.99 and np.isnan([nearly["low"], nearly["high"]]).all()  # it would be too narrow there
    with pytest.raises(SinkscopeError, match=r"9 models of one setting .* fewer than 10; give more models"):
        strength_and_collapse(models(9))
    with pytest.raises(SinkscopeError, match="2 models of one setting"):
        strength_and_collapse(models(12).assign(differs=["bos"] * 10 + [""] * 2))


def test_two_reports_of_the_same_text_are_compared_pair_by_pair(three):
    table = compare_reports(Report(three["one"]), Report(three["two"])).set_index("quantity")
    row = table.loc["mass on the first token, T = 48"]
    each = [synthetic_maps(3, 3, 2, 48, seed=seed)[..., 1:, 0].mean((1, 2, 3)) for seed in (0, 1)]
    difference = each[1] - each[0]
    assert row["difference"] == pytest.approx(difference.mean(), abs=1e-6) and row["paired"]
    bounds = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    np.testing.assert_allclose([row["low"], row["high"]], bounds, atol=1e-6)
    losses = [collapsing(seed=seed)["nll"].values.astype(float) for seed in (0, 1)]
    dense = table.loc["perplexity, dense"]
    assert dense["difference"] == pytest.approx(np.exp(np.nanmean(losses[1][0]) - np.nanmean(losses[0][0])), rel=1e-5)


def test_reports_of_other_tokens_stand_beside_each_other_without_an_interval(three):
    table = differences(three["one"], three["other"])
    assert not table["paired"].any() and table["low"].isna().all()
    losses = table[table["quantity"].str.startswith("perplexity")]
    assert losses["difference"].isna().all() and losses["note"].str.contains("cannot be compared").all()


@pytest.mark.parametrize(
    ("given", "said"),
    [([], "nothing to put into an atlas"), ("a-model", "put it in brackets"), (3, "takes a list of models, not 3")],
)
def test_what_is_no_list_of_models_is_refused(given, said):
    with pytest.raises(SinkscopeError, match=said):
        atlas(given)


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(SinkscopeError, match="is no report: give two folders"):
        compare_reports(tmp_path, tmp_path)
    with pytest.raises(SinkscopeError, match="has no sink mass"):
        atlas_table({"one": {"text": captured().drop_vars("sink_mass")}})


@pytest.mark.slow
def test_a_model_is_measured_once_and_anew_when_anything_is_another(tmp_path, monkeypatch, one_format):
    made: list[str] = []

    def measured(model, tokenizer, text, **asked) -> Report:
        made.append(f"a/{len(made)}")
        return Report(records(made[-1], len(made)), items=())

    monkeypatch.setattr(reporting, "report", measured)
    words, other, place = tmp_path / "words.txt", tmp_path / "other" / "words.txt", tmp_path / "model"
    words.write_text(world.PROSE, encoding="utf-8")
    other.parent.mkdir()
    other.write_text(world.PROSE[::-1], encoding="utf-8")  # of the same name
    shutil.copytree(world.saved_model(), place)

    def opened(text=words, **options) -> str:
        asked = {"segments": 2, "length": 24, "streaming": False, "progress": False} | options
        twice = [atlas([str(place)], text, folder=tmp_path / "kept", **asked).tables["atlas"] for _ in range(2)]
        assert twice[0]["model"].tolist() == twice[1]["model"].tolist()
        return str(twice[1]["model"].item())

    settings = [{}, {"text": other}, {"segments": 3}, {"length": 16}, {"dtype": "bfloat16"}, {"streaming": True}]
    found = [opened(**each) for each in settings]
    model, _ = sinkscope.load(str(place))
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(place)
    found.append(opened())
    assert made == [f"a/{number}" for number in range(len(settings) + 1)] and len({*found}) == len(found)


def test_an_atlas_is_no_report_of_a_model(three, tmp_path):
    shown = Report({"text": stored(atlas_table(three), "model", {"kind": "atlas"})}, sections=(ATLAS,))
    of_a_model = Report(three["one"])
    for one, other, which in ((shown, of_a_model, "the first"), (of_a_model, shown, "the other")):
        with pytest.raises(SinkscopeError, match=f"{which} report is an atlas, of several models"):
            compare_reports(one, other)
    with pytest.raises(SinkscopeError, match="is an atlas, of several models; give the reports"):
        atlas([shown])
