"""Numbers of README and the site, read from the records that are kept beside them (`assets/make.py` makes them)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import sinkscope
from sinkscope.analysis.costs import estimates

ROOT = Path(__file__).parents[1]


def words_of(*places: str) -> str:
    return " ".join(re.sub(r"\s+", " ", (ROOT / place).read_text(encoding="utf-8")) for place in places)


README, FRONT = words_of("README.md"), words_of("docs/index.md")
LEARN = words_of(*(f"docs/learn/{page}.md" for page in ("what_is_a_sink", "streaming", "collapse", "growing")))
ROWS = {
    "full sinks": "key and value (StreamingLLM)",
    "phantom, values zeroed": "key in the denominator, value zeroed (phantom)",
    "phantom, other direction, own norm": "key in the denominator, value of its own norm in another direction",
    "window": "nothing (window)",
    "values only": "value with the weight it would have, key out of the denominator",
    "phantom, mean values": "key in the denominator, value replaced by the window's mean",
    "phantom, own direction, ordinary norm": (
        "key in the denominator, value of its own direction and the norm of an ordinary one"
    ),
    "phantom, random values": "key in the denominator, value of a random token",
}


def record(name: str) -> xr.Dataset:
    return sinkscope.open_record(ROOT / "assets" / f"{name}.nc")


def told(value: float, low: float, high: float, times: float = 1.0) -> str:
    """As a page has a number with its interval: three digits of it, or none behind the point of shares."""
    value, low, high = (times * each for each in (value, low, high))
    digits = 0 if times == 100 or value >= 1000 or (value > 100 and high < 300) else 1 if value >= 10 else 2
    unit = "%" if times == 100 else ""
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


@pytest.mark.slow
def test_the_collapse_over_segments_is_that_of_its_losses():
    found = sinkscope.collapse_table(record("collapse"))
    assert found.attrs["bounds"] == "95% t intervals over 16 sequences" and "16 segments of 640 tokens" in LEARN
    for row in found.itertuples():
        ppl = f"{row.ppl:.1f} [{row.low:.1f}, {row.high:.1f}]"
        if row.ppl > 1000:
            ppl = f"{row.ppl:.0f} [{row.low:.0f}, {row.high:.0f}]"
        ratio = "1" if row.part == "full sinks" else told(row.ratio, row.ratio_low, row.ratio_high)
        assert f"| {ROWS[row.part]} | {ppl} | {ratio} |" in LEARN
    ratios = found.set_index("part")["ratio"]
    long, turned = ratios["phantom, own direction, ordinary norm"], ratios["phantom, other direction, own norm"]
    assert f"is × {long:.1f} that with full sinks, with its own norm and another direction × {turned:.2f}" in LEARN
    assert f"near that with no value (× {ratios['phantom, values zeroed']:.2f})" in LEARN


def test_the_two_halves_of_a_sink_are_those_of_the_same_losses():
    halves = sinkscope.factorial_table(record("collapse")).set_index("effect")
    for effect, row in halves.iterrows():
        words = "Their interaction is " if effect == "interaction" else ""
        assert words + told(row["share"], row["low"], row["high"], 100) in LEARN


def test_the_collapse_of_a_long_text_is_that_of_its_losses_and_has_no_interval_where_the_text_drifts():
    found = record("long")
    assert found.sizes["token"] == 12_288 and set(found["cache_size"].values) == {512}
    table = sinkscope.ppl_table(found, baseline="sinks 4+508").set_index("policy")
    for policy in ("window 512", "sinks 4+508, values only"):
        row = table.loc[policy]
        assert f"× {told(row['ratio'], row['ratio_low'], row['ratio_high'])}" in LEARN
    phantom = table.loc["sinks 4+508, values zeroed"]
    assert f"the phantom's × {phantom['ratio']:.2f} has no interval" in LEARN and np.isnan(phantom["ratio_low"])


def test_the_collapse_of_each_group_of_layers_is_that_of_its_losses():
    found = record("layers")
    table = sinkscope.ppl_table(found, baseline="dense").assign(part=found["part"].values)
    table = table.assign(first=found["first_layer"].values).set_index(["part", "first"])
    window, phantom, values = (table.loc[part]["ratio"] for part in ("window", "phantom", "values only"))

    def ratio(part: str, first: int) -> str:
        row = table.loc[(part, first)]
        return "× " + told(row["ratio"], row["ratio_low"], row["ratio_high"])

    assert f"{ratio('window', 15)} the dense perplexity in layers 15 to 19 and {ratio('window', 20)} in 20 to" in LEARN
    assert "against × {:.2f}, {:.2f}, {:.2f} and {:.2f} in 0 to 4".format(*window[[0, 5, 10, 25]]) in LEARN
    assert f"make it {ratio('phantom', 15)} and {ratio('phantom', 20)} in those" in LEARN
    assert f"leave it at × {values[15]:.2f} and × {values[20]:.2f}" in LEARN
    closed = 1 - np.log(phantom) / np.log(window)
    assert closed[15] > 0.9 and f"phantoms close {closed[20]:.0%} of the gap in loss in 20 to 24" in LEARN
    assert closed[0] < 0 and window[0] < 1.1 and "none of the small one in 0 to 4" in LEARN
    assert window.nlargest(2).index.tolist() == [15, 20] and (phantom[[15, 20]] < window[[15, 20]]).all()


def test_the_perplexity_of_each_policy_is_that_of_its_losses_with_intervals_of_ratios_alone_where_the_text_drifts():
    found = record("policies")
    table, late = estimates(found).set_index("policy"), sinkscope.losses_from(found, sinkscope.first_evicted(256))
    assert list(table.index) == ["dense", "window 256", "recompute 256", "sinks 4+252"] and table["low"].isna().all()
    everywhere = sinkscope.ppl_table(late.sel(policy=["dense", "window 256", "sinks 4+252"])).set_index("policy")
    sampled = sinkscope.ppl_table(late.sel(policy=["dense", "recompute 256"]), baseline="dense").set_index("policy")
    assert sampled["tokens"].iloc[0] == 64
    for policy, row in table.iterrows():
        ratio = (sampled if policy == "recompute 256" else everywhere).loc[policy]
        shown = "1" if policy == "dense" else told(ratio["ratio"], ratio["ratio_low"], ratio["ratio_high"])
        (on_page,) = re.findall(rf"\| {re.escape(policy)} (?:\|[^|]*){{4}}\| ([^|]* \| [^|]*) \|", LEARN)
        assert on_page == f"{row['ppl']:.1f} | {shown}"
        if policy in ("window 256", "sinks 4+252"):
            assert f"{shown} times" in FRONT


def masses(alpha: xr.DataArray, length: int) -> np.ndarray:
    """[text] mean mass over the queries after the first one, which gives itself 1."""
    return ((alpha.astype(float) * length - 1) / (length - 1)).mean(["layer", "head"]).values


def with_t(values: np.ndarray) -> tuple[float, float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return values.mean(), low, high


def shown(mass: np.ndarray, length: int) -> str:
    mean, low, high = (100 * each for each in with_t(mass))
    null = np.mean(1 / np.arange(2, length + 1))
    above = 100 * (mean / 100 - null) / (1 - null)
    return f"{mean:.1f}% [{low:.1f}, {high:.1f}] | {100 * null:.2f}% | {above:.1f}%"


def test_the_headlines_at_each_length_are_those_of_the_importance_of_each_head():
    alpha, times = record("headline")["alpha"], []
    for length in (64, 256, 1024):
        own = alpha.sel(length=length)
        mass, rate = masses(own, length), float((own > 0.3).mean())
        assert f"| {length:,} | {shown(mass, length)} | {100 * rate:.0f}% |" in LEARN
        times.append(mass.mean() / np.mean(1 / np.arange(2, length + 1)))
    assert "{:.1f}, {:.0f} and {:.0f} times the null".format(*times) in LEARN
    rates = [100 * float((alpha.sel(length=1024) > epsilon).mean()) for epsilon in (0.1, 0.2, 0.3, 0.5, 0.8)]
    assert "{:.0f}%, {:.0f}%, {:.0f}%, {:.0f}% and {:.1f}% for ε".format(*rates) in LEARN
    assert record("headline").attrs["read"] == "8 segments spaced over the text"
    mass, null = with_t(masses(alpha.sel(length=1024), 1024)), np.mean(1 / np.arange(2, 1025))
    above, low, high = (100 * (each - null) / (1 - null) for each in mass)
    for page in (README, FRONT):
        assert f"token takes {above:.1f}% [{low:.1f}, {high:.1f}] of the attention above the uniform null" in page
        assert f"{100 * mass[0]:.1f}% of all attention, where uniform attention would give it {100 * null:.2f}%" in page
        assert f"{rates[2]:.0f}% of the heads give it an importance α > 0.3" in page


@pytest.mark.parametrize(("bos", "words"), [("no", "without"), ("yes", "with")])
def test_the_headlines_with_and_without_bos_are_those_of_the_importance_of_each_head(bos, words):
    alpha = record("headline")["alpha_short"].sel(bos=bos)
    rates = (alpha > 0.3).mean(["layer", "head"]).values
    assert alpha.sizes["short"] == 34 and "34 shorter ones" in LEARN
    assert f"| 64, {words} BOS | {shown(masses(alpha, 64), 64)} | {told(*with_t(rates), 100)} |" in LEARN


ARMS = {
    "softmax": "softmax",
    "softmax1": "softmax1",
    "learned sink": "learned sink logit",
    "sink token": "learned sink token in front",
    "clipped softmax": "clipped softmax",
    "sigmoid": "sigmoid",
    "relu": "ReLU",
}


@pytest.mark.slow
def test_sinks_of_the_laboratory_are_those_of_its_runs():
    found = record("emergence").sel(arm=list(ARMS))  # README's p values are corrected for these
    table = sinkscope.lab.emergence_table(found)
    assert found.sizes["seed"] == 8 and table.attrs["step"] == 1000
    assert f"the best possible loss is {table.attrs['best_loss']:.2f}; " in LEARN
    table = table.set_index(["quantity", "arm"])
    for arm, name in ARMS.items():
        mass, total, loss = (
            table.loc[(quantity, arm)] for quantity in ("BOS mass of non-triggers", "row sum of non-triggers", "loss")
        )
        shown = [
            f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−") for row in (mass, total, loss)
        ]
        shown[0] = shown[0].replace("−0.00", "0.00")
        p = "" if arm == "softmax" else "< 0.001 " if mass["p_holm"] < 0.001 else f"{mass['p_holm']:.3f} "
        assert f"| {name} | {shown[0]} | {p}| {shown[1]} | {shown[2]} |" in LEARN
    one = found.bos_mass.sel(tokens="non-trigger").isel(step=-1, layer=0, head=0)
    between = one.sel(arm=["softmax1", "learned sink", "sink token", "clipped softmax"])
    assert f"of {float(between.min()):.2f} to {float(between.max()):.2f} by seed" in LEARN


MORE = {**ARMS, "softpick": "Softpick", "gated": "gated attention"}


@pytest.mark.slow
def test_the_table_of_all_arms_in_the_docs_is_that_of_their_runs():
    found = record("emergence")
    table = sinkscope.lab.emergence_table(found).set_index(["quantity", "arm"])
    said = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    assert set(found["arm"].values) == set(MORE) and found.sizes["seed"] == 8
    for arm, name in MORE.items():
        cells = [name]
        for quantity in ("BOS mass of non-triggers", "row sum of non-triggers", "loss"):
            row = table.loc[(quantity, arm)]
            cells.append(f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−"))
            if quantity.startswith("BOS"):
                cells[-1] = cells[-1].replace("−0.00", "0.00")
                cells.append("" if arm == "softmax" else "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}")
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in said


@pytest.mark.slow
def test_the_sink_of_a_language_model_that_copies_is_that_of_its_run():
    found, said = record("copying"), (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    heads, table = sinkscope.lab.head_masses(found).set_index("arm"), sinkscope.lab.language_table(found)
    for arm, bold in {"sink token": "**", "softmax": ""}.items():
        top = heads.loc[arm].sort_values("mass").iloc[-1]
        window = table[(table["arm"] == arm) & (table["sinks"] == 0) & (table["cache_size"] > 0)].iloc[0]
        mass = f"{bold}{top['mass']:.2f} [{top['low']:.2f}, {top['high']:.2f}]{bold}"
        ratio = f"{bold}× {window['ratio']:.2f} [{window['ratio_low']:.2f}, {window['ratio_high']:.2f}]{bold}"
        assert f"| {mass} | {ratio} |" in said
        assert bool(heads.loc[arm, "is_sink"].any()) is (arm == "sink token")


def test_sinks_by_length_of_text_are_those_of_the_runs():
    found = record("lengths")
    mass = found.bos_mass.sel(tokens="non-trigger").isel(step=-1, layer=0, head=0)
    for length in found["length"].values:
        one = mass.sel(length=length).values.astype(float)
        half = stats.t.ppf(0.975, 7) * one.std(ddof=1) / 8**0.5
        assert len(one) == 8
        at = f"at {length} tokens" if length == 32 else f"at {length}"
        assert f"{one.mean():.2f} [{one.mean() - half:.2f}, {one.mean() + half:.2f}] {at}" in LEARN


DOC = re.sub(r"\s+", " ", (ROOT / "docs" / "texts.md").read_text(encoding="utf-8"))
TEXTS = ("King James Bible", "The Ferry at Askerholm")


def of_each_text(name: str) -> list[xr.Dataset]:
    found = record(name)
    return [found.isel(sequence=found["source"].values == text) for text in TEXTS]


def late_ratios(losses: xr.Dataset) -> np.ndarray:
    """[text] mean loss in a window less that with sinks, after the first eviction."""
    late = losses["nll"].isel(token=slice(130, None)).astype(float).mean("token")
    return (late.sel(policy="window 128") - late.sel(policy="sinks 4+124")).values


def test_both_demo_texts_side_by_side_are_those_of_their_records():
    null, rows = np.mean(1 / np.arange(2, 1025)), []
    for text, first, losses in zip(TEXTS, of_each_text("texts"), of_each_text("texts_losses"), strict=True):
        mass, rate = masses(first["alpha"], 1024), float((first["alpha"] > 0.3).mean())
        dense = losses["nll"].sel(policy="dense").astype(float).mean("token").values
        above, ratio = (mass.mean() - null) / (1 - null), late_ratios(losses)
        bounds = [np.exp(with_t(each)) for each in (dense, ratio)]
        low, high = with_t(mass)[1:]
        assert (
            f"| {text} | {100 * mass.mean():.1f}% [{100 * low:.1f}, {100 * high:.1f}] | {100 * above:.1f}% | "
            f"{100 * rate:.0f}% | {told(*bounds[0])} | {told(*bounds[1])} |"
        ) in DOC
        rows.append([mass.mean(), above, rate, dense.mean(), ratio.mean()])
    mass, above, rate, dense, ratio = np.mean(rows, 0)
    shares = f"{100 * mass:.1f}% | {100 * above:.1f}% | {100 * rate:.0f}%"
    assert f"| mean | {shares} | {np.exp(dense):.1f} | {np.exp(ratio):.2f} |" in DOC


@pytest.mark.slow
def test_the_collapse_with_a_bos_token_in_front_is_that_of_its_losses():
    with_bos = [told(*np.exp(with_t(late_ratios(each)))) for each in of_each_text("texts_bos")]
    without = [told(*np.exp(with_t(late_ratios(each)))) for each in of_each_text("texts_losses")]
    for text, one, other in zip(TEXTS, without, with_bos, strict=True):
        assert f"| {text} | {one} | {other} |" in DOC


def test_what_the_model_has_by_heart_is_what_its_losses_say():
    for text, losses in zip(TEXTS, of_each_text("familiar"), strict=True):
        (row,) = sinkscope.familiarity_table(losses.assign_attrs(text=text)).to_dict("records")
        own = 100 * sinkscope.recited(losses).values
        assert f"| {text} | {row['loss']:.2f} | {100 * row['recited']:.1f}% | {own[0]:.1f}% |" in DOC
        if text == TEXTS[0]:
            loss = losses["nll"].squeeze("policy").astype(float).mean("token").values
            others = f"{loss[1:].min():.2f} to {loss[1:].max():.2f}"
            assert f"its loss is {loss[0]:.2f} nats" in DOC and others in DOC
            assert not own[1:].any() and "nothing of the seven other segments" in DOC
