"""Attention between spans, against maps that the models make themselves in float64, and their null counted out."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

import sinkscope.attention.layer as layer_module
from sinkscope import (
    Received,
    SinkscopeError,
    SpanMass,
    Spans,
    attention_maps,
    by_span,
    capture,
    discover,
    importance,
    measure,
    open_record,
    save_record,
    span_mass,
    span_table,
)
from tests.support.eager import eager_maps, left_padded, without_padding
from tests.support.zoo import build, inputs

TOKENS = 40
PROBE = importlib.import_module("sinkscope.probes.span_mass")
SPANS = Spans(["first", "body", "end"], [(0, 1), [(3, 20), (25, 30)], (30, 40)])


@pytest.fixture(params=[64, 0], ids=["beside the values", "from tiles"], autouse=True)
def _both_ways(request, monkeypatch):
    monkeypatch.setattr(PROBE, "BESIDE", request.param)


def between(maps, spans):
    """[.., query_span, key_span] by brute force over maps [.., query, key]."""
    labels = spans.labels(maps.shape[-1])
    found = np.zeros((*maps.shape[:-2], len(spans), len(spans)))
    for a, one in enumerate(spans.names):
        for b, other in enumerate(spans.names):
            queries = [place for place, label in enumerate(labels) if label == one]
            keys = [place for place, label in enumerate(labels) if label == other]
            found[..., a, b] = sum(maps[..., i, j] for i in queries for j in keys) / len(queries)
    return found


def even(tokens, causal=True):
    """A map of even attention."""
    return np.array([[float(j <= i or not causal) / (i + 1 if causal else tokens) for j in range(tokens)]
                     for i in range(tokens)])  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral_sliding", "gpt_oss", "bloom", "bert"])
def test_masses_are_those_of_the_models_own_maps(family):
    with torch.no_grad(), capture(build(family), [SpanMass(SPANS)]) as scope:
        scope.model(**inputs(family))
    expected = between(eager_maps(family, inputs(family)), SPANS)
    np.testing.assert_allclose(scope.record.span_mass, expected, atol=2e-6)
    null = between(even(TOKENS, causal=family != "bert"), SPANS)
    found = span_mass(scope.record)
    np.testing.assert_allclose(found["null"], null, atol=1e-12)
    np.testing.assert_allclose(found, expected.mean(0), atol=2e-6)


def test_a_partition_of_the_keys_takes_all_attention_and_any_tiling_gives_the_same(monkeypatch):
    whole = SpanMass(SPANS.with_rest(TOKENS))
    record = measure(build("llama"), inputs("llama")["input_ids"], [whole])
    np.testing.assert_allclose(record.span_mass.sum("key_span"), 1, atol=1e-5)
    np.testing.assert_allclose(span_mass(record)["null"].sum("key_span"), 1, atol=1e-12)
    monkeypatch.setattr(layer_module, "TILE_ENTRIES", 60)
    monkeypatch.setattr(layer_module, "TILE_COLUMNS", 7)
    tiled = measure(build("llama"), inputs("llama")["input_ids"], [whole])
    np.testing.assert_allclose(tiled.span_mass, record.span_mass, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_padding_is_in_no_span_and_each_text_of_a_batch_has_its_own(family):
    padding, given = [0, 9], inputs(family)
    spans = [SPANS, Spans(["end", "middle"], [(20, 31), (2, 9)])]
    with torch.no_grad(), capture(build(family), [SpanMass(spans)]) as scope:
        scope.model(**left_padded(given, padding))
    found = scope.record.span_mass
    assert found.query_span.values.tolist() == ["first", "body", "end", "middle"]
    for row, (own, padded) in enumerate(zip(spans, padding, strict=True)):
        maps = eager_maps(family, without_padding(given, row, padded))[0]
        part = found[row].sel(query_span=list(own.names), key_span=list(own.names))
        np.testing.assert_allclose(part, between(maps, own), atol=2e-6)
        others = [name for name in found.query_span.values if name not in own.names]
        assert found[row].sel(query_span=others).isnull().all() and found[row].sel(key_span=others).isnull().all()
    assert scope.record.span[1, 20:31].values.tolist() == ["end"] * 11 and scope.record.span[1, 31].item() == ""


def test_means_over_texts_leave_out_those_without_the_spans():
    texts = [inputs("llama", 1, 30, seed=seed)["input_ids"][0][:length] for seed, length in ((1, 30), (2, 22), (3, 30))]
    spans = [Spans(["a", "b"], [(0, 10), (10, 20)]), Spans(["a"], [(4, 22)]), Spans(["b", "a"], [(0, 5), (5, 9)])]
    found = span_mass(measure(build("llama"), texts, [SpanMass(spans)]))
    maps = [eager_maps("llama", {"input_ids": text[None]})[0] for text in texts]
    each = [between(own_maps, own) for own_maps, own in zip(maps, spans, strict=True)]
    nulls = [between(even(len(text)), own) for text, own in zip(texts, spans, strict=True)]
    np.testing.assert_allclose(found[..., 0, 1], (each[0][..., 0, 1] + each[2][..., 1, 0]) / 2, atol=2e-6)
    on_itself = (each[0][..., 0, 0] + each[1][..., 0, 0] + each[2][..., 1, 1]) / 3
    np.testing.assert_allclose(found[..., 0, 0], on_itself, atol=2e-6)
    assert found["null"][0, 1].item() == pytest.approx((nulls[0][0, 1] + nulls[2][1, 0]) / 2)


@pytest.mark.slow
def test_the_table_has_every_pair_and_its_strongest_head(tmp_path):
    record = measure(build("llama"), inputs("llama")["input_ids"], [SpanMass(SPANS)])
    table = span_table(open_record(save_record(record, tmp_path / "spans.nc"))).set_index(["query_span", "key_span"])
    mass = between(eager_maps("llama", inputs("llama")), SPANS).mean(0)
    row = table.loc["end", "body"]
    assert len(table) == 9 and row["mass"] == pytest.approx(mass[..., 2, 1].mean(), abs=2e-6)
    assert mass[int(row.strongest_layer), int(row.strongest_head), 2, 1] == mass[..., 2, 1].max()
    assert row["null"] == pytest.approx(between(even(TOKENS), SPANS)[2, 1])


def test_tokens_are_summed_to_spans():
    model, ids = build("llama"), inputs("llama", 1)["input_ids"]
    maps, record = eager_maps("llama", {"input_ids": ids}), measure(model, ids, [Received()])
    found = by_span(attention_maps(model, ids), SPANS)
    assert found.dims == ("layer", "head", "query_span", "key_span")
    np.testing.assert_allclose(found, between(maps[0], SPANS), atol=2e-6)
    inside = [[label == name for label in SPANS.labels(TOKENS)] for name in SPANS.names]
    received = by_span(record.received, SPANS)
    np.testing.assert_allclose(received, np.stack([maps.sum(-2)[..., each].sum(-1) for each in inside], -1), atol=1e-5)
    alpha = by_span(importance(record), SPANS)
    weights = 1 / np.arange(TOKENS, 0, -1)
    np.testing.assert_allclose(alpha[0, 0, 0, 2], (maps[0, 0, 0].sum(0) * weights)[30:].sum(), rtol=1e-5)
    assert alpha["null"][0, 1].item() == pytest.approx(importance(record)["null"][0].values[inside[1]].sum())
    table = discover(record, epsilon=0.01, times_null=0.1, queries=1, spans=SPANS).set_index("token_text")
    assert table.position.to_dict() == {"first": 0, "body": 3, "end": 30}
    assert table.loc["body", "importance"] == pytest.approx(float(alpha[0, :, :, 1].mean()))


def test_kept_measurements_of_spans_belong_to_a_place_in_the_record(tmp_path):
    one, other = inputs("llama", 2, 20)["input_ids"]
    spans = [Spans(["a"], [(0, 5)]), Spans(["a"], [(5, 20)])]
    model = build("llama")
    given = dict(batch_tokens=20, checkpoint=tmp_path)
    first = measure(model, [one, other], [SpanMass(spans)], **given)
    turned = measure(model, [other, one], [SpanMass(spans)], **given)
    fresh = measure(model, [other, one], [SpanMass(spans)])
    np.testing.assert_array_equal(turned.span_mass, fresh.span_mass)
    np.testing.assert_array_equal(measure(model, [one, other], [SpanMass(spans)], **given).span_mass, first.span_mass)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: SpanMass("body"), "has no spans"),
        (lambda: SpanMass([]), "has no spans"),
        (lambda: SpanMass(Spans([f"s{n}" for n in range(2049)], [(n, n + 1) for n in range(2049)])), "2,049 spans are"),
        (lambda: run(SpanMass(Spans(["far"], [(30, 50)]))), "'far' reaches to token 49, and the text has 40 tokens"),
        (lambda: run(SpanMass([SPANS])), "the spans of 1 texts, and there are more"),
        (lambda: by_span(run(SpanMass(SPANS)).span_mass, SPANS), "neither queries nor keys"),
        (lambda: by_span(run(Received()).received, [SPANS]), "spans of 1 texts were given for 2"),
        (lambda: by_span(run(Received()).received, "words"), "spans='words' are none"),
        (lambda: by_span(pooled(), SPANS), "`query` of this array is not every token"),
        (lambda: span_mass(run(Received())), r"no span_mass: measure with the probe SpanMass\(\)"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_a_sentence(run, words):
    with pytest.raises(SinkscopeError, match=words):
        run()


def run(probe):
    return measure(build("llama"), inputs("llama")["input_ids"], [probe])


def pooled():
    return attention_maps(build("llama"), inputs("llama", 1)["input_ids"], resolution=8)


def test_a_text_in_several_passes_is_refused_since_the_means_would_be_of_a_part():
    model, ids = build("llama"), inputs("llama", 1)["input_ids"]
    with torch.no_grad(), capture(model, [SpanMass(SPANS)]), pytest.raises(SinkscopeError, match="in one forward pass"):
        cache = model(ids).past_key_values
        model(ids[:, :5], past_key_values=cache)
