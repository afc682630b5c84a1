"""Masses of spans that attention sums beside its values are those of its probabilities, read tile by tile."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from sinkscope import (
    TOVA,
    Dose,
    HeavyHitters,
    LearnedSink,
    PerHead,
    Sigmoid,
    SinkMass,
    SinkWindow,
    Softmax1,
    Softpick,
    SpanMass,
    Spans,
    Sparsemax,
    Window,
    attached,
    capture,
    measure,
)
from sinkscope.scope.interface import SPANNED
from tests.support.zoo import DECODERS, build, inputs, with_uneven_attention

PROBE = importlib.import_module("sinkscope.probes.span_mass")
SPANS = Spans(["first", "body", "end"], [(0, 1), [(3, 20), (25, 30)], (30, 40)])
ADD = SpanMass.add
OTHERS = {
    "a window": ("llama", dict(policy=Window(12))),
    "sinks and a window": ("llama", dict(policy=SinkWindow(3, 9))),
    "sinks that turn with the window": ("gpt_neox", dict(policy=SinkWindow(3, 9, "cache"))),
    "policies of single heads": ("llama", dict(policy=PerHead({(0, 1): Window(5), (1, 2): SinkWindow(2, 7)}))),
    "the most attended": ("llama", dict(policy=HeavyHitters(6, 6))),
    "the last attended": ("llama", dict(policy=TOVA(9))),
    "weaker sinks": ("llama", dict(policy=Dose(-2.0, range(3)))),
    "one in the denominator": ("llama", dict(normaliser=Softmax1())),
    "a sink in the denominator": ("llama", dict(normaliser=LearnedSink(1.5))),
    "a normaliser of each score": ("llama", dict(normaliser=Sigmoid())),
    "normalisers of whole rows": ("llama", dict(normaliser=Sparsemax())),
    "rows that sum to less": ("llama", dict(normaliser=Softpick())),
    "values narrower than queries": ("deepseek_v3", {}),
    "a soft cap": ("gemma2", {}),
    "learned sinks": ("gpt_oss", {}),
    "both ways": ("bert", {}),
}


def masses(monkeypatch, most, run):
    """What `run` gives where so many spans at most are summed beside the values, and how many tiles were read."""
    tiles = []
    monkeypatch.setattr(PROBE, "BESIDE", most)
    monkeypatch.setattr(SpanMass, "add", lambda *args: (tiles.append(1), ADD(*args))[1])
    return run(), len(tiles)


@pytest.mark.parametrize("case", OTHERS)
def test_both_ways_agree_under_any_policy_and_normaliser(case, monkeypatch):
    family, setting = OTHERS[case]

    def run():
        with torch.no_grad(), attached(build(family), probes=[SpanMass(SPANS)], **setting) as scope:
            scope.model(**inputs(family))
        return scope.record.span_mass

    (beside, none), (from_tiles, some) = (masses(monkeypatch, most, run) for most in (64, 0))
    assert not none and some
    np.testing.assert_allclose(beside, from_tiles, atol=3e-6)


def test_room_that_a_cache_has_behind_the_text_is_in_no_span(monkeypatch):
    model, given = build("llama"), inputs("llama")

    def run():
        cache = StaticCache(config=model.config, max_cache_len=64)
        with torch.no_grad(), capture(model, [SpanMass(SPANS)]) as scope:
            model(**given, past_key_values=cache)
        return scope.record.span_mass

    (beside, none), (from_tiles, some) = (masses(monkeypatch, most, run) for most in (64, 0))
    assert not none and some
    np.testing.assert_allclose(beside, from_tiles, atol=2e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral_sliding", "deepseek_v3"])
def test_logits_are_the_same_to_the_bit_and_nothing_is_left_behind(family):
    model, given = build(family), inputs(family)
    with torch.no_grad():
        with capture(model, [SinkMass()]):
            plain = model(**given).logits
        with capture(model, [SinkMass(), SpanMass(SPANS)]):
            assert torch.equal(model(**given).logits, plain) and list(SPANNED)
    assert not list(SPANNED)


@pytest.mark.parametrize("tokens", [33, 65])
def test_where_a_last_query_is_read_alone_logits_differ_by_rounding(tokens):
    config = AutoConfig.for_model("llama", **dict(DECODERS["llama"][1], head_dim=64))
    model, given = with_uneven_attention(AutoModelForCausalLM.from_config(config).eval()), inputs("llama", 1, tokens)
    with torch.no_grad():
        with capture(model, [SinkMass()]):
            plain = model(**given).logits
        with capture(model, [SpanMass(Spans(["all"], [(0, tokens)]))]):
            torch.testing.assert_close(model(**given).logits, plain, atol=1e-5, rtol=0)


def test_what_is_derived_from_the_probe_counts_in_its_own_way():
    @dataclass(frozen=True)
    class Later(SpanMass):
        """Without what the first key gets."""

        def add(self, total, layer, tile):
            probabilities = tile.probabilities.clone()
            if tile.columns.start == 0:
                probabilities[..., 0] = 0
            super().add(total, layer, replace(tile, probabilities=probabilities))

    model, ids = build("llama"), inputs("llama", 1)["input_ids"]
    found, plain = (measure(model, ids, [kind(SPANS)]).span_mass for kind in (Later, SpanMass))
    assert (found.sel(key_span="first") == 0).all() and (plain.sel(key_span="first") > 0).all()


def test_a_row_of_nothing_but_padding_has_no_masses():
    given = inputs("llama", 2)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    given["attention_mask"][1] = 0
    with torch.no_grad(), capture(build("llama"), [SpanMass(SPANS)]) as scope:
        scope.model(**given)
    found = scope.record.span_mass
    alone = measure(build("llama"), given["input_ids"][:1], [SpanMass(SPANS)])
    assert found[1].isnull().all() and (scope.record.span[1] == "").all()
    np.testing.assert_allclose(found[0], alone.span_mass[0], atol=2e-6)


def test_gradients_are_those_without_the_probe():
    model, given = build("llama"), inputs("llama")
    found = []
    for probes in ([SinkMass()], [SinkMass(), SpanMass(SPANS)]):
        model.zero_grad()
        with capture(model, probes):
            model(**given).logits.square().mean().backward()
        found.append(model.model.layers[0].self_attn.v_proj.weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", ["half precision", "many spans"])
def test_probabilities_are_read_where_columns_would_lose_digits_or_cost_more(case, monkeypatch):
    many = Spans([f"s{place}" for place in range(65)], [(place, place + 1) for place in range(65)])
    model, spans = (build("llama"), many) if case == "many spans" else (build("llama").bfloat16(), SPANS)
    ids = inputs("llama", 1, 80)["input_ids"]
    record, tiles = masses(monkeypatch, 64, lambda: measure(model, ids, [SpanMass(spans.with_rest(80))]))
    assert tiles
    np.testing.assert_allclose(record.span_mass.sum("key_span"), 1, atol=1e-5 if case == "many spans" else 2e-3)
