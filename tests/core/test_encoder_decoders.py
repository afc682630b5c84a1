"""Encoder-decoders: the encoder's, the decoder's and cross-attention, and encoders and decoders on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import (
    ALL,
    Dense,
    DistanceProfile,
    Entropy,
    LogSumExp,
    Maps,
    MeanLogits,
    Received,
    SinkCache,
    SinkMass,
    SinkscopeError,
    attention_maps,
    capture,
    importance,
    measure,
    perplexity,
    sink_mass,
)  # fmt: skip
from sinkscope.hf.caches import returned_cache, with_cache
from tests.support.model_state import state_of
from tests.support.several import ENCODER_DECODERS, build_several, inputs_of, own_maps

PROBES = (Maps(resolution=None), SinkMass(), Received(), Entropy(), LogSumExp(), MeanLogits(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_each_stream_has_the_models_own_eager_maps(name):
    model, given, own = build_several(name), inputs_of(name), own_maps(name, inputs_of(name))
    with torch.no_grad():
        outside = model(**given).logits
        with capture(model, PROBES) as scope:
            inside = model(**given).logits
        shown = build_several(name, "eager")(**given, output_attentions=True)
    torch.testing.assert_close(inside, outside, atol=1e-5, rtol=0)
    assert list(scope.streams) == ["decoder", "cross", "encoder"]
    for stream in scope.streams:
        record = scope.streams[stream].record
        for number, (expected,) in own[stream].items():
            torch.testing.assert_close(expected, shown[f"{stream}_attentions"][number])
            np.testing.assert_allclose(record.attention_map.sel(layer=number), expected, atol=1e-5)
            np.testing.assert_allclose(record.received.sel(layer=number), expected.sum(2), atol=5e-5)
            np.testing.assert_allclose(record.sink_mass.sel(layer=number), expected[..., :4], atol=1e-5)
            entropy = torch.special.entr(expected.double()).sum(-1)
            np.testing.assert_allclose(record.entropy.sel(layer=number), entropy, atol=5e-5)
            np.testing.assert_allclose(
                record.mean_probability.sel(layer=number).fillna(0), expected[:, :, :4, :4].mean(0), atol=1e-5
            )
        assert record.attrs["causal"] == int(stream == "decoder")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_decoder_that_writes_token_by_token_looks_at_the_same_encoder(name):
    model, given = build_several(name), inputs_of(name)
    ids = given.pop("decoder_input_ids")
    with torch.no_grad():
        whole = {stream: measure(model, given | {"decoder_input_ids": ids}, PROBES, stream=stream)
                 for stream in ("decoder", "cross")}  # fmt: skip
        with capture(model, PROBES) as scope:
            read, cache = model.get_encoder()(**given), None
            for token in ids.split(1, 1):
                output = model(encoder_outputs=read, decoder_input_ids=token, **with_cache(model, cache))
                cache = returned_cache(output)
    for stream, expected in whole.items():
        record = scope.streams[stream].record
        np.testing.assert_array_equal(record.token_id, ids)
        for variable in ("attention_map", "received", "sink_mass", "log_sum_exp"):
            np.testing.assert_allclose(record[variable], expected[variable], atol=3e-5, err_msg=variable)


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_padding_of_both_texts_is_left_out_of_cross_attention(name):
    model, given = build_several(name), inputs_of(name)
    read, written = torch.ones(2, 17).long(), torch.ones(2, 11).long()
    read[0, 12:], written[0, 8:] = 0, 0
    masks = {"attention_mask": read, "decoder_attention_mask": written}
    short = {"input_ids": given["input_ids"][:1, :12], "decoder_input_ids": given["decoder_input_ids"][:1, :8]}
    alone = measure(model, short, PROBES, stream="cross")
    record = measure(model, given | masks, PROBES, stream="cross")
    assert record.length.values.tolist() == [8, 11] and record.key_length.values.tolist() == [12, 17]
    np.testing.assert_allclose(record.attention_map[0, :, :, :8, :12], alone.attention_map[0], atol=1e-5)
    np.testing.assert_allclose(record.received[0, ..., :12], alone.received[0], atol=3e-5)
    assert bool(record.attention_map[0, ..., 12:].isnull().all())
    assert sink_mass(record).attrs["null"] == pytest.approx((4 / 12 + 4 / 17) / 2)
    null = importance(record).null
    np.testing.assert_allclose(null[0, :12], 1 / 12)
    np.testing.assert_allclose(null[1], 1 / 17)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoders_and_decoders_are_models_of_their_own(name):
    model, given = build_several(name), inputs_of(name)
    ids = given.pop("decoder_input_ids")
    encoder = measure(model.get_encoder(), given, PROBES)
    whole = measure(model, given | {"decoder_input_ids": ids}, PROBES, stream="encoder")
    np.testing.assert_array_equal(encoder.attention_map, whole.attention_map)
    assert encoder.attrs["causal"] == 0
    length = encoder.sizes["query"]
    assert sink_mass(encoder).attrs["null"] == pytest.approx(4 / length)
    decoder = measure(model.get_decoder(), ids, PROBES)
    assert decoder.attrs["causal"] == 1 and decoder["layer"].values.tolist() == [0, 1, 2]
    assert bool(decoder.sink_mass.notnull().all())


def test_maps_of_padded_texts_that_need_no_pooling_are_those_of_each_alone():
    model, given = build_several("bart"), inputs_of("bart")
    mask = torch.ones(2, 17).long()
    mask[0, 12:] = 0
    with torch.no_grad(), capture(model, [Maps()]) as scope:
        model(**given, attention_mask=mask)
    short = {"input_ids": given["input_ids"][:1, :12], "decoder_input_ids": given["decoder_input_ids"][:1]}
    for stream, shape in {"decoder": (11, 11), "cross": (11, 12), "encoder": (12, 12)}.items():
        found = scope.streams[stream].record.attention_map[0]
        alone = attention_maps(model, short, stream=stream)
        np.testing.assert_allclose(found[..., : shape[0], : shape[1]], alone, atol=1e-5)
        assert bool(found[..., shape[1] :].isnull().all())


def test_pooled_maps_of_cross_attention_have_cells_of_both_texts():
    model, given = build_several("bart"), inputs_of("bart", batch=1)
    maps = attention_maps(model, given, stream="cross")
    pooled = attention_maps(model, given, stream="cross", resolution=12)
    assert maps.shape == (3, 4, 11, 17) and pooled.shape == (3, 4, 11, 12)
    cells = np.arange(17) * 12 // 17
    for cell in range(12):
        np.testing.assert_allclose(pooled[..., cell], maps[..., cells == cell].sum("key"), atol=1e-6)


def test_probes_of_one_text_are_left_out_of_cross_attention():
    model, given = build_several("bart"), inputs_of("bart")
    before = state_of(model)
    with torch.no_grad(), capture(model, ALL) as scope:
        model(**given)
    assert state_of(model) == before
    assert "distance_mass" in scope.record and "distance_mass" not in scope.streams["cross"].record
    with pytest.raises(SinkscopeError, match=r"DistanceProfile.* of two; leave it out"):
        measure(model, given, [DistanceProfile()], stream="cross")


def test_what_cannot_be_done_with_an_encoder_decoder_is_said():
    ids = torch.arange(3, 20)[None]
    for name in ("t5", "bart"):
        model = build_several(name)
        for call, message in (
            (lambda: measure(model, ids), r"give what both of them get by name .* or pass model\.get_encoder"),  # noqa: B023
            (lambda: measure(model, {"input_ids": ids}), "give decoder_input_ids beside input_ids"),  # noqa: B023
            (lambda: perplexity(model, ids, [Dense()]), "reads with an encoder and writes with a decoder"),  # noqa: B023
            (lambda: SinkCache(model, 2, 8), "reads with an encoder and writes with a decoder"),  # noqa: B023
            (lambda: SinkCache(model.get_encoder(), 2, 8), "T5Stack|BartEncoder"),  # noqa: B023
        ):
            with pytest.raises(SinkscopeError, match=message):
                call()
