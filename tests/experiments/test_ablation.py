"""The ablation against `perplexity` called by hand, over the same tokens in all cells."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import sinkscope
from sinkscope import SinkWindow, ablate, perplexity
from sinkscope.record import first_evicted
from tests.experiments.ablating import COMBINATION, EXACT, LINE_BREAK, ablated
from tests.support import zoo


def by_hand(model, ids, level, first):
    """exp of the mean loss from token `first` on, by `perplexity` of tokens replaced one by one."""
    changed = ids.clone()
    for at in range(level.sinks):
        if level.kind == "line breaks":
            changed[:, at] = LINE_BREAK
    policy = SinkWindow(level.sinks, level.cache_size - level.sinks, level.positions)
    nll = perplexity(model, changed, [policy], progress=False)["nll"].values[0]
    return float(np.exp(nll[:, first:].astype(np.float64).mean()))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_every_cell_is_perplexity_with_the_tokens_replaced_by_hand(family):
    model, ids = zoo.build(family), zoo.inputs(family, batch=2, tokens=90)["input_ids"]
    table = ablated(model, ids)
    assert len(table) == 3 * 2 * 2 * 2
    for level in table.itertuples():
        assert level.ppl == pytest.approx(by_hand(model, ids, level, 5), rel=1e-12)
        assert level.ppl_evicted == pytest.approx(by_hand(model, ids, level, 26), rel=1e-12)
    assert table.attrs["tokens_used"] == 2 * (90 - 5)
    assert table.attrs["tokens_evicted"] == 2 * (90 - 26)


@pytest.mark.slow
def test_the_same_tokens_are_scored_in_all_cells(model, ids, monkeypatch):
    seen = []
    import sinkscope.analysis.ablation as home

    original = home.ppl_table
    monkeypatch.setattr(home, "ppl_table", lambda curve, *a, **b: seen.append(curve) or original(curve, *a, **b))
    ablated(model, ids)
    evicted, *whole = [curve["nll"].notnull() for curve in seen]
    assert all(bool((scored.values == scored.values[:1]).all()) for scored in (evicted, *whole))
    assert all(scored.values[0, 0].nonzero()[0].tolist() == list(range(5, 90)) for scored in whole)
    assert evicted.values[0, 0].nonzero()[0].tolist() == list(range(26, 90))


@pytest.mark.parametrize("size", [5, 16])
def test_the_first_token_that_an_eviction_can_touch_is_the_cache_size_plus_two(model, ids, size):
    nll = perplexity(model, ids, [sinkscope.Dense(), SinkWindow(0, size)], progress=False)["nll"].values[:, 0, 1:]
    differs = np.abs(nll[0] - nll[1]) > 1e-4  # blocks and float32 sums: about 1e-6
    assert differs.nonzero()[0][0] + 1 == first_evicted(size)


@pytest.mark.slow
def test_without_sinks_one_cell_is_run_and_its_row_repeated(model, ids, forwards):
    table = ablated(model, ids, cache_size=16, block=128)
    none = table[table["sinks"] == 0]
    assert len(none) == 4 and none["cell"].nunique() == 1 and none["ppl"].nunique() == 1
    assert forwards.count == table["cell"].nunique() == 1 + 2 * 2 * 2
    assert not table.duplicated(COMBINATION).any()


@pytest.mark.slow
def test_ratios_are_to_the_most_sinks_of_the_same_cache_size(model, ids):
    table = ablated(model, ids).set_index(COMBINATION)
    for size, rows in table.groupby("cache_size"):
        most = rows.loc[(size, "first", "cache", 4)]
        np.testing.assert_allclose(rows["ratio"], rows["ppl"] / most["ppl"], rtol=1e-12)
        assert (most["ratio_low"], most["ratio_high"]) == (1.0, 1.0)
    for value, low, high in (("ratio", "ratio_low", "ratio_high"), ("ppl", "low", "high")):
        known = table[table[low].notna()]  # a row whose losses drift along the text has no interval
        assert ((known[low] <= known[value]) & (known[value] <= known[high])).all() and len(known) > len(table) / 2


def test_without_first_tokens_ratios_are_to_the_first_kind_and_positions_given(model, ids):
    table = ablated(model, ids, kinds="random", positions="original", cache_size=16)
    assert table.loc[table["ratio"] == 1.0, ["sinks", "kind", "positions"]].values.tolist() == [
        [4, "random", "original"]
    ]
    assert table.attrs["baseline"] == "4 sinks of 16 (random, original positions)"


@pytest.mark.slow
def test_intervals_are_those_of_ppl_table(model, ids):
    table = ablated(model, ids, cache_size=16, positions="cache", kinds="first", seed=3)
    curve = perplexity(model, ids, [SinkWindow(s, 16 - s) for s in (0, 1, 4)], progress=False)
    curve["nll"] = curve["nll"].where(curve["token"] >= 5)
    expected = sinkscope.ppl_table(curve, baseline="sinks 4+12", resamples=50, seed=3)
    for name in ("ppl", "low", "high", "ratio", "ratio_low", "ratio_high"):
        np.testing.assert_array_equal(table[name], expected[name])


@pytest.mark.slow
def test_scalars_and_sequences_of_one_are_the_same(model, ids):
    several = ablate(model, ids, np.array([4]), [16], ["cache"], ["first"], resamples=20)
    one = ablate(model, ids, 4, 16, resamples=20)
    pd.testing.assert_frame_equal(one[EXACT], several[EXACT])


def test_levels_given_twice_count_once(model, ids):
    assert len(ablate(model, ids, (4, 0, 4), (16, 16), resamples=20)) == 2


@pytest.mark.slow
def test_texts_of_different_lengths(model, ids):
    texts = [ids[0], ids[0, :60]]
    table = ablate(model, texts, (0, 2), 16, resamples=20)
    assert table.attrs["tokens_used"] == (90 - 3) + (60 - 3)


@pytest.mark.slow
def test_the_text_given_is_not_changed(model, ids):
    before = ids.clone()
    ablated(model, ids, kinds=("line breaks", "random"))
    assert torch.equal(ids, before)


@pytest.mark.slow
def test_attrs_say_where_the_table_came_from(model, ids):
    attrs = ablated(model, ids, text="made up", seed=5).attrs
    expected = dict(
        kind="ablation", model="LlamaForCausalLM", dtype="float32", tokens=90, seed=5, block=1024, text="made up",
        first_scored=5, first_evicted=26, over="batches", confidence=0.95,
    )  # fmt: skip
    assert expected.items() <= attrs.items()
    assert len(attrs["tokens_sha256"]) == 64 and "batches of one text" in attrs["bounds"]


@pytest.mark.slow
def test_the_figure_takes_the_table(model, ids):
    from sinkscope.figures import ablation

    assert len(ablation(ablated(model, ids)).axes) == 2


@pytest.mark.slow
def test_the_model_is_left_as_it_was(model, ids):
    before = (model.config._attn_implementation, len(model.model.layers[0].self_attn._forward_hooks))
    ablated(model, ids)
    assert before == (model.config._attn_implementation, len(model.model.layers[0].self_attn._forward_hooks))


def test_ablate_is_not_imported_with_the_package():
    program = "import sinkscope, sys; assert 'ablate' in sinkscope.__all__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
