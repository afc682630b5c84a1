"""A text read under every configuration, against what perplexity, generate and the definition in float64 say."""

from __future__ import annotations

import ast
import gc
import itertools

import numpy as np
import pytest
import torch

from sinkscope import TOVA, Dense, PerHead, SinkCache, SinkscopeError, attached, cost, perplexity
from sinkscope.explorer import display
from sinkscope.explorer.configuration import GONE, Configuration
from sinkscope.explorer.text_model import WRITTEN, TextModel
from tests.explorer.references import CONFIGURATIONS, FAMILIES, TOKENS, defined, everything, first, reader, text
from tests.support.zoo import build

OUTSIDE = ("mpt", "bloom", "falcon_rotary")  # the attention interface
EVERYWHERE = ("window", "weaker sinks of a window", "chosen in a layer", "clipped")


def written(results) -> list[int]:
    """The ids of a continuation, which are its text where there is no tokenizer."""
    return ast.literal_eval(results["continuation"][-1].text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"),
    [("llama", case) for case in CONFIGURATIONS] + [(name, case) for name in FAMILIES[1:] for case in EVERYWHERE],
)
def test_losses_equal_those_of_perplexity(name, case):
    configuration, model = CONFIGURATIONS[case][0], reader(name)
    curve = perplexity(
        build(name), text()[None], [configuration.policy_slot], block=17, normaliser=configuration.normaliser_slot
    )
    reading = first(model, configuration)
    # float32, in blocks of other sizes
    np.testing.assert_allclose(reading.losses, curve.nll.values[0, 0], atol=3e-4)
    assert np.isnan(reading.losses[0]) and np.isfinite(reading.losses[1:]).all()
    assert reading.configuration == configuration


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_losses_and_guesses_equal_the_definition_in_float64(case):
    configuration, definition = CONFIGURATIONS[case]
    logits, _, _ = defined("llama", definition)
    reading, shares = first(reader(), configuration), logits.softmax(-1).numpy()
    expected = -np.log(shares[np.arange(59), text()[1:]])
    np.testing.assert_allclose(reading.losses[1:], expected, atol=1e-4)
    guesses = reading.guesses
    np.testing.assert_allclose(guesses.probabilities, -np.sort(-shares, -1)[:, :16], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(shares, guesses.ids, -1), guesses.probabilities, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_families_outside_the_attention_interface_are_read_densely(name):
    results = everything(reader(name), Configuration())
    curve = perplexity(build(name), text()[None], [Dense()])
    maps, scored = results["reading"]  # the maps do not wait for the head
    assert not maps.is_scored and np.isnan(maps.losses).all() and maps.maps is scored.maps
    np.testing.assert_allclose(scored.losses, curve.nll.values[0, 0], atol=1e-4)
    assert list(map(len, results.values())) == [2, 1, 1, WRITTEN]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *OUTSIDE, "gpt2"])
def test_a_dense_continuation_is_that_of_generate(name):
    model, ids = build(name), text()[None]
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=WRITTEN, do_sample=False)
    assert written(everything(reader(name), Configuration())) == expected[0, 60:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sinks", "window"), [("llama", 0, 20), *((name, 4, 16) for name in FAMILIES)])
def test_a_continuation_under_sinks_is_that_of_generate_with_a_sink_cache(name, sinks, window):
    model, ids = build(name), text()[None]
    with SinkCache(model, sinks, window) as cache:
        mask = torch.ones_like(ids)
        expected = model.generate(ids, attention_mask=mask, cache=cache, max_new_tokens=24, do_sample=False)
    policy = "sinks" if sinks else "window"
    results = everything(reader(name), Configuration(policy=policy, sinks=sinks, window=window))
    assert written(results) == expected[0, 60:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["sinks in the text", "sinks gone from a window", "stronger sinks", "chosen", "softmax1 in a layer", "ReLU"]
)
def test_a_continuation_is_that_of_whole_forward_passes_without_a_cache(case):
    configuration, model, ids = CONFIGURATIONS[case][0], build("llama"), text()[None]
    with torch.no_grad(), attached(model, policy=configuration.policy_slot, normaliser=configuration.normaliser_slot):
        for _ in range(8):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert written(everything(reader(), configuration))[:8] == ids[0, 60:].tolist()


@pytest.mark.slow
def test_a_continuation_grows_by_a_token_and_only_the_last_is_done():
    class Letters:
        def decode(self, ids):
            return "".join(chr(97 + each % 26) for each in ids)

    results = everything(reader(tokenizer=Letters()), Configuration())["continuation"]
    ids = written(everything(reader(), Configuration()))
    assert [each.text for each in results] == [Letters().decode(ids[: count + 1]) for count in range(WRITTEN)]
    assert [each.done for each in results] == [False] * (WRITTEN - 1) + [True]


def test_no_token_is_computed_that_nobody_asked_for():
    model, passes = reader(), []
    model.model.model.layers[0].register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    everything(model, Configuration(policy="window", window=20))  # what is found out of a model is known afterwards
    passes.clear()
    everything(model, Configuration())
    assert passes == [60] + [1] * (WRITTEN - 1)  # the text, and every written token but the last
    passes.clear()
    everything(model, Configuration(policy="window", window=20))
    assert passes == [60 - 20] + [1] * (WRITTEN - 1)  # from the query before the first that notices on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configuration", "like"),
    [
        (Configuration(policy="sinks", sinks=4, window=16), Configuration(policy="sinks", sinks=4, window=16)),
        (
            Configuration(policy="sinks", sinks=4, window=16, dose=-2.0),
            Configuration(policy="sinks", sinks=4, window=16),
        ),
        (Configuration(policy="window", window=20), Configuration(policy="window", window=20)),
        (Configuration(policy="window", window=20, layers=(0, 0)), Configuration()),  # the other layer keeps all
        (Configuration(policy="h2o", window=20), Configuration(policy="h2o", window=20)),
        (Configuration(normaliser="sigmoid"), Configuration()),
    ],
)
def test_the_price_is_that_of_the_cache_the_configuration_needs(configuration, like):
    price, expected = everything(reader(), configuration)["price"][0], cost(build("llama"), like.policy_slot, 60)
    assert (price.kv_bytes, price.flops) == (expected.kv_bytes, expected.flops_per_token)


@pytest.mark.parametrize(
    "configuration", [Configuration(policy="chosen", evicted=(3,), since=30), Configuration(dose=GONE)]
)
def test_keys_that_are_evicted_stay_in_the_cache_and_cost_no_attention(configuration):
    price, dense = (
        everything(reader(), configuration)["price"][0],
        cost(build("llama"), Configuration().policy_slot, 60),
    )
    assert price.kv_bytes == dense.kv_bytes and price.flops < dense.flops_per_token


def test_half_precision_is_read_as_perplexity_reads_it_and_its_maps_are_made_in_full():
    configuration = CONFIGURATIONS["sinks"][0]
    reading = first(TextModel(build("llama", dtype=torch.bfloat16), text()), configuration)
    curve = perplexity(build("llama", dtype=torch.bfloat16), text()[None], [configuration.policy_slot])
    np.testing.assert_allclose(reading.losses, curve.nll.values[0, 0], atol=0.05)
    weights = reading.maps.probabilities(3, slice(0, 60), slice(0, 60))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(np.nansum(weights, 1), 1, atol=1e-4)


def test_a_cache_larger_than_the_text_is_noted():
    assert "nothing is evicted" in first(reader(), Configuration(policy="window", window=60)).note
    assert first(reader(), Configuration(policy="window", window=20)).note == ""


@pytest.mark.slow
@pytest.mark.parametrize("policy", [PerHead({(0, 1): TOVA(8)}), TOVA(8, layers=[1])])
def test_a_continuation_goes_on_with_what_a_scored_policy_remembers(policy):
    ids = written(everything(reader(), Configuration(policy=policy)))
    whole = torch.cat([text(), torch.tensor(ids)])[None]
    with torch.no_grad(), attached(build("llama"), policy=policy) as scope:
        expected = scope.model(whole).logits[0].argmax(-1)
    assert ids == expected[len(text()) - 1 : -1].tolist()


def test_a_cost_that_cannot_be_told_is_said_and_the_text_goes_on(monkeypatch):
    def refused(*_):
        raise SinkscopeError("no cost of <this>")

    monkeypatch.setattr("sinkscope.explorer.text_model.cost", refused)
    results = everything(reader(), Configuration(policy="window", window=20))
    price = results["price"][0]
    assert price.unknown == "no cost of <this>" and len(written(results)) == WRITTEN
    assert display._price(price) == "unknown: no cost of &lt;this&gt;"


@pytest.mark.slow
def test_while_a_text_goes_on_the_logits_of_the_whole_are_gone():
    results = reader(tokens=97).read(Configuration(), 96, lambda: False)
    while type(next(results)).__name__ != "Continuation":
        pass
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape[-1:] == (128,)]
    assert [each for each in tensors if each.untyped_storage().nbytes() >= 97 * 128 * 4] == []
    next(results)


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reader("bert"), "keeps no keys in a cache|not causal"),
        (lambda: TextModel(build("llama").base_model, text()), "no language head"),
        (lambda: TextModel(build("llama"), torch.tensor([3, 500])), "token id 500 is outside the vocabulary"),
        (lambda: TextModel(build("llama"), torch.tensor([3, -1])), "token id -1 is outside the vocabulary"),
        (lambda: TextModel(build("llama"), torch.tensor([3])), "two tokens at least"),
    ],
)
def test_a_model_or_a_text_that_cannot_be_read_is_refused_at_once(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


def test_a_model_that_carries_a_scope_is_refused():
    model = build("llama")
    with attached(model), pytest.raises(SinkscopeError, match="carries a scope"):
        TextModel(model, text())


@pytest.mark.parametrize(
    ("name", "configuration", "message"),
    [
        ("gpt2", Configuration(policy="sinks", sinks=4, window=16), "learned absolute positions"),
        ("gpt2", Configuration(policy="window", window=16), "learned absolute positions"),
        ("mpt", Configuration(policy="sinks", sinks=4, window=16), "attention interface"),
        ("bloom", Configuration(policy="chosen", evicted=(0,), since=20), "attention interface"),
        ("falcon_rotary", Configuration(normaliser="softmax1"), "attention interface"),
        ("llama", Configuration(policy="sinks", sinks=8, window=6), "smaller than the 8 sinks"),
        ("llama", Configuration(policy="window", window=0), "cannot be kept"),
        ("llama", Configuration(policy="chosen", evicted=tuple(range(60)), since=20), "all 60 tokens are evicted"),
        ("llama", Configuration(policy="chosen", evicted=(60,), since=20), "token 60 cannot be evicted"),
        ("llama", Configuration(policy="chosen", evicted=(6,), since=60), "the last query is 59"),
        ("llama", Configuration(policy="window", window=20, layers=(1, 4)), "layer 2"),
    ],
)
def test_a_configuration_that_a_model_cannot_follow_is_one_sentence_and_the_next_is_read(name, configuration, message):
    model = reader(name)
    with pytest.raises(SinkscopeError, match=message) as caught:
        everything(model, configuration)
    assert "\n" not in str(caught.value)
    assert np.isfinite(first(model, Configuration()).losses[1:]).all()


def test_learned_positions_go_as_far_as_their_table():
    with pytest.raises(SinkscopeError, match="a table of 512 positions"):
        first(reader("gpt2", 520), Configuration())


@pytest.mark.parametrize(
    "configuration", [Configuration(), Configuration(policy="recompute", window=20)], ids=lambda each: each.policy
)
def test_weights_that_are_no_numbers_are_named(configuration):
    broken = build("llama")
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(SinkscopeError, match=r"NaN or infinity.*lm_head\.weight"):
        everything(TextModel(broken, text()), configuration)


@pytest.mark.slow
def test_a_reading_that_is_overtaken_at_any_moment_leaves_the_model_to_be_read():
    for moment in range(12):  # those of the trials that find out what the model can do among them
        model, asked = reader(), itertools.count()
        list(model.read(Configuration(), TOKENS - 1, lambda asked=asked, end=moment: next(asked) >= end))
        assert first(model, Configuration(policy="window", window=20)).losses.size == TOKENS
