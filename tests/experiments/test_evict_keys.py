"""Evicted keys against float64 twins with those keys masked by hand, and the random keys of the controls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sinkscope import EvictKeys, ReplaceTokens, SinkscopeError, run_interventions
from sinkscope.experiments.intervention import Conditions
from tests.experiments import brute
from tests.experiments.brute import START
from tests.support.zoo import build

CONDITIONS = Conditions(START, 4, 0, brute.Tokenizer())


def delimiters(text) -> list[int]:
    return [place for place in range(4, START) if int(text[place]) % 11 == 0 or int(text[place]) == brute.LINE_BREAK]


def drawn(intervention: EvictKeys, text, number: int, conditions: Conditions = CONDITIONS) -> tuple[int, ...]:
    return tuple(intervention.apply(text, number, conditions).policy.keys)


CASES = {
    "sinks": (EvictKeys("sinks"), lambda text, number: range(4), {}),
    "fewer sinks": (EvictKeys("sinks", 1), lambda text, number: [0], {}),
    "delimiters": (EvictKeys("delimiters", 2), lambda text, number: delimiters(text)[:2], {}),
    "places": (EvictKeys((0, 7, 39)), lambda text, number: [0, 7, 39], {}),
    "next": (EvictKeys("next", 3), lambda text, number: [4, 5, 6], {}),
    "next, more than sinks": (EvictKeys("next", 6), lambda text, number: range(6, 12), {}),
    "in a layer": (EvictKeys("sinks", layers=[1]), lambda text, number: range(4), {"layers": [1]}),
    "in a head of a layer": (
        EvictKeys("sinks", layers=[0], heads=[1, 3]),
        lambda text, number: range(4),
        {"layers": [0], "heads": [1, 3]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("intervention", "keys", "where"), CASES.values(), ids=CASES)
def test_losses_mass_and_outputs_are_those_of_a_model_without_these_keys(intervention, keys, where):
    record = run_interventions(
        build("llama"), brute.texts(), [intervention], tokenizer=brute.Tokenizer(), start=START, first=2, progress=False
    )
    for number, text in enumerate(brute.texts()):
        brute.check(record, intervention.name, number, brute.without("llama", text, keys(text, number), **where), 2)
        brute.check(record, "nothing", number, brute.dense("llama", text), 2)


@pytest.mark.slow
@pytest.mark.parametrize("where", [{}, {"layers": [1], "heads": [0, 2]}], ids=str)
def test_without_recent_keys_every_query_sees_itself_and_what_is_older(where):
    chosen = EvictKeys("recent", 3, **where)
    record = run_interventions(build("llama"), brute.texts(), [chosen], start=START, first=2, progress=False)
    for number, text in enumerate(brute.texts()):
        twin = brute.biased("llama", text, brute.without_recent(len(text), 3), **where)
        brute.check(record, chosen.name, number, twin, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "gemma3"])
def test_families_with_learned_positions_learned_sinks_and_native_windows(name):
    """Layers with a window of their own are left alone, by intervention and reference alike."""
    chosen = [EvictKeys("sinks"), EvictKeys("recent", 3)]
    record = run_interventions(build(name), brute.texts(), chosen, start=START, first=1, draws=2, progress=False)
    for number, text in enumerate(brute.texts()):
        keys = [drawn(EvictKeys("random"), text, number, replace(CONDITIONS, draw=draw)) for draw in range(2)]
        brute.check(record, "nothing", number, brute.dense(name, text), 1)
        brute.check(record, "evict sinks", number, brute.without(name, text, range(4)), 1)
        brute.check(record, "evict random", number, brute.mean(brute.without(name, text, each) for each in keys), 1)
        for kind, behind in (("recent", 0), ("near-recent", 3)):
            twin = brute.biased(name, text, brute.without_recent(len(text), 3, behind=behind))
            brute.check(record, f"evict 3 {kind}", number, twin, 1)


def test_the_control_is_as_many_random_keys_in_the_same_place():
    for kind in ("sinks", "next", "attended", "delimiters"):
        control = EvictKeys(kind, 3, layers=[1], heads=[0]).control()
        assert control == EvictKeys("random", 3, layers=[1], heads=[0])
    assert EvictKeys("sinks", bias=-2.0).control() == EvictKeys("random", bias=-2.0)
    assert EvictKeys((5, 9)).control() == EvictKeys("random", 2)
    assert EvictKeys("recent", 3, layers=[1]).control() == EvictKeys("near-recent", 3, layers=[1])
    for kind in ("random", "near-recent"):
        assert EvictKeys(kind, 3).control() is None
    assert EvictKeys("attended").control() is None  # as much mass as the sinks: a control itself


@pytest.mark.slow
@given(sinks=st.integers(1, 6), count=st.integers(1, 8), room=st.integers(1, 30), seed=st.integers(0, 3))
def test_random_keys_are_different_ones_behind_the_sinks_and_before_the_start(sinks, count, room, seed):
    start = 2 * max(sinks, count) + room
    conditions, text = Conditions(start, sinks, seed), brute.texts()[0]
    keys = drawn(EvictKeys("random", count), text, 0, conditions)
    assert len(keys) == len(set(keys)) == count
    assert max(sinks, count) <= min(keys) and max(keys) < start  # none of them among as many first tokens
    assert keys == drawn(EvictKeys("random", count), text, 0, conditions)


def test_random_keys_change_with_text_and_seed_but_with_no_dose():
    text, kind = brute.texts()[0], "random"
    keys = drawn(EvictKeys(kind), text, 0)
    assert {drawn(EvictKeys(kind, bias=bias), text, 0) for bias in (-math.inf, -2.0, 0.0, 3.0)} == {keys}
    others = {drawn(EvictKeys(kind), text, number) for number in range(1, 6)}
    seeds = {drawn(EvictKeys(kind), text, 0, Conditions(START, 4, seed)) for seed in range(1, 6)}
    assert len(others | {keys}) == len(seeds | {keys}) == 6


def test_all_keys_between_sinks_and_start_are_drawn_alike():
    counts = np.zeros(START)
    for number in range(4000):
        counts[list(CONDITIONS.others(number, 4))] += 1
    expected = 4000 * 4 / (START - 4)  # 444; five standard deviations are 100
    assert (counts[:4] == 0).all() and (abs(counts[4:] - expected) < 100).all()


def test_delimiters_are_the_first_tokens_of_punctuation_behind_the_sinks():
    class Words:
        def decode(self, ids):
            words = [".", " a", "b.", " ,", "\n", " ", "", ";\n", " -", "?!", "。"]
            return "".join(words[token] for token in ids)

    tokens = brute.texts()[0].new_tensor([0, *range(11)] * 3 + [1] * 10)
    keys = drawn(EvictKeys("delimiters", 7), tokens, 0, Conditions(30, 2, 0, Words()))
    assert keys == (4, 5, 8, 10, 11, 12, 13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EvictKeys("first"),
            "which='first' is unknown; give one of sinks, random, recent, near-recent, next, attended, delimiters",
        ),
        (lambda: EvictKeys("sinks", 0), "count=0"),
        (lambda: EvictKeys("sinks", 1.5), "count=1.5"),
        (lambda: EvictKeys("sinks", True), "count=True"),
        (lambda: EvictKeys(()), "names no keys"),
        (lambda: EvictKeys(5), "names no keys"),
        (lambda: EvictKeys((-1,)), "names no keys"),
        (lambda: EvictKeys((3, 3)), "names no keys"),
        (lambda: EvictKeys((3,), 2), "places count themselves"),
        (lambda: EvictKeys("sinks", bias=math.nan), "bias=nan is no dose"),
        (lambda: EvictKeys("recent", bias=-1.0), "evicted or left"),
        (lambda: EvictKeys("near-recent", bias=-1.0), "evicted or left"),
        (lambda: EvictKeys("sinks", layers=3), r"layers=3 .* such as layers=\[0, 5\]"),
        (lambda: EvictKeys("sinks", layers=[]), r"layers=\[\]"),
        (lambda: EvictKeys("sinks", heads=[-1]), r"heads=\[-1\]"),
        (lambda: EvictKeys("sinks", heads="1"), "heads='1'"),
    ],
)
def test_what_names_no_keys_is_refused_when_it_is_written(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "intervention", "message"),
    [
        ("llama", EvictKeys("sinks", 40), "40 of the 40 tokens that query 40 sees"),
        ("llama", EvictKeys("recent", 20), "20 of the 40 tokens that query 40 sees"),
        ("llama", EvictKeys((40,)), "key 40 of `evict key 40` is not before the start at 40"),
        ("llama", EvictKeys((0, 500)), "key 500 .* before the start at 40"),
        ("llama", EvictKeys("sinks", layers=[0, 2]), "layer 2 of `evict sinks, .*: the model has layers 0 to 1"),
        ("llama", EvictKeys("sinks", heads=[4]), "head 4 of .* heads 0 to 3"),
        ("gemma3", EvictKeys("sinks", layers=[1, 5]), "layer 1 .* own window and stays as it is; give some of 5"),
        ("mistral_sliding", EvictKeys("sinks"), "slides over its own window"),
        ("bloom", EvictKeys("sinks"), "BloomForCausalLM .* no key can be taken from it"),
        ("llama", EvictKeys("delimiters"), "needs a tokenizer"),
    ],
)
def test_what_a_model_or_text_cannot_take_is_refused_before_anything_runs(name, intervention, message, monkeypatch):
    model = build(name)
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(SinkscopeError, match=message):
        run_interventions(model, brute.texts(), [intervention], start=START, progress=False)


def test_a_text_with_too_few_delimiters_is_named_before_anything_runs(monkeypatch):
    model, texts = build("llama"), [text.clamp(min=34) for text in brute.texts()]
    texts[1][4:START] = 12
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(SinkscopeError, match="text 1 has 0 delimiters among its tokens 4 to 39, and 2 are"):
        run_interventions(
            model, texts, [EvictKeys("delimiters", 2)], tokenizer=brute.Tokenizer(), start=START, progress=False
        )


@pytest.mark.slow
def test_attended_keys_are_the_most_attended_ones_and_as_many_as_carry_the_mass_of_the_sinks():
    """From the float64 maps, key by key; random weights have no sinks, so a few of the others carry as much."""
    chosen = [EvictKeys("attended"), EvictKeys("attended", 2, layers=[1], heads=[0, 2])]
    record = run_interventions(build("llama"), brute.texts(), chosen, start=START, first=1, draws=2, progress=False)
    for number, text in enumerate(brute.texts()):
        maps = brute.dense("llama", text).maps
        mass = maps[:, :, START:].mean((0, 1, 2))
        order = sorted(range(4, START), key=lambda key: -mass[key])
        count = next(count for count in range(1, 40) if mass[order[:count]].sum() >= mass[:4].sum())
        brute.check(record, "evict attended", number, brute.without("llama", text, order[:count]), 1)
        assert float(record.removed_mass.sel(policy="evict attended")[number]) == pytest.approx(
            mass[order[:count]].sum()
        )
        own = maps[1, [0, 2], START:].mean((0, 1))
        two = sorted(range(4, START), key=lambda key: -own[key])[:2]
        twin = brute.without("llama", text, two, layers=[1], heads=[0, 2])
        brute.check(record, "evict 2 attended, layer 1, heads 0 2", number, twin, 1)
    assert record.control.sel(policy="evict 2 attended, layer 1, heads 0 2") == "evict 2 random, layer 1, heads 0 2"


def test_where_all_others_carry_less_than_the_sinks_all_of_them_go():
    received = np.ones((1, 1, 1, START + 9))
    received[..., 0] = 500
    attention = xr.Dataset({"received": (("sequence", "layer", "head", "key"), received)})
    conditions = replace(CONDITIONS, attention=lambda number: attention)
    assert drawn(EvictKeys("attended"), brute.texts()[0], 0, conditions) == tuple(range(4, START))
    with pytest.raises(SinkscopeError, match=r"follows the attention of a model; run it with sinkscope\.intervene"):
        EvictKeys("attended").apply(brute.texts()[0], 0, CONDITIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_mass_removed_is_that_of_the_evicted_keys_in_the_text_as_it_is(name):
    """Mean over all layers and heads, of which those with a window of their own, and those not chosen, lose none."""
    kinds = getattr(build(name).config, "layer_types", None) or ["full_attention"] * 2
    layer = kinds.index("full_attention")
    where = {"layers": [layer], "heads": [1]}
    chosen = [EvictKeys("sinks"), EvictKeys("recent", 3), EvictKeys("sinks", **where), EvictKeys("sinks", bias=-2.0)]
    chosen += [ReplaceTokens("random")]
    record = run_interventions(build(name), brute.texts(), chosen, start=START, first=1, draws=2, progress=False)
    full = np.array([kind == "full_attention" for kind in kinds], float)[:, None, None]
    for number, text in enumerate(brute.texts()):
        maps, found = brute.dense(name, text).maps[:, :, START:], record.removed_mass.isel(sequence=number)
        queries = np.arange(START, len(text))

        def mass(keys, maps=maps):
            taken = sum(maps[:, :, np.arange(maps.shape[2]), key] for key in keys)
            return float((full * taken).mean())

        assert float(found.sel(policy="evict sinks")) == pytest.approx(mass([0, 1, 2, 3]), abs=1e-5)
        for kind, behind in (("recent", 0), ("near-recent", 3)):
            expected = mass([queries - behind - back for back in (1, 2, 3)])
            assert float(found.sel(policy=f"evict 3 {kind}")) == pytest.approx(expected, abs=1e-5)
        keys = [drawn(EvictKeys("random"), text, number, replace(CONDITIONS, draw=draw)) for draw in range(2)]
        assert float(found.sel(policy="evict random")) == pytest.approx(np.mean([*map(mass, keys)]), abs=1e-5)
        one = maps[layer, 1, :, :4].sum(-1).mean() / (maps.shape[0] * maps.shape[1])
        assert float(found.sel(policy=EvictKeys("sinks", **where).name)) == pytest.approx(one, abs=1e-5)
        for other in ("nothing", "dose -2 on sinks", "first tokens to random ones"):
            assert np.isnan(found.sel(policy=other))


@pytest.mark.slow
def test_every_draw_is_kept_and_the_row_is_their_mean():
    record = run_interventions(
        build("llama"), brute.texts(), [EvictKeys("sinks")], start=START, draws=5, progress=False, first=1
    )
    assert record.draws.values.tolist() == [1, 1, 5] and record.sizes["draw"] == 5
    each = record.draw_nll.sel(policy="evict random")
    for number, text in enumerate(brute.texts()):
        for draw in range(5):
            keys = drawn(EvictKeys("random"), text, number, replace(CONDITIONS, draw=draw))
            lost = brute.without("llama", text, keys).losses[START:]
            assert float(each[draw, number]) == pytest.approx(lost.mean(), abs=3e-4)
    np.testing.assert_allclose(each.mean("draw"), record.nll.sel(policy="evict random").mean("token"), rtol=1e-6)
    assert np.isnan(record.draw_nll.sel(policy="evict sinks")[1:]).all()
    assert len({drawn(EvictKeys("random"), text, 0, replace(CONDITIONS, draw=draw)) for draw in range(20)}) == 20


def test_by_default_there_are_twenty_draws_or_as_many_as_there_can_be():
    many, few = Conditions(40, 4), Conditions(10, 4)
    assert EvictKeys("random").draws(many) == 20 and EvictKeys("random", 5).draws(few) == 1
    assert EvictKeys("random", 4).draws(few) == 15 and EvictKeys("sinks").draws(many) == 1  # six keys, four at a time
