"""Models of all types are captured as they attend, and what is not their tokens' attention is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AttentionInterface,
    BigBirdConfig,
    BigBirdModel,
    CanineConfig,
    CanineModel,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LongformerConfig,
    LongformerModel,
    SegformerConfig,
    SegformerModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sinkscope import (
    ALL,
    FREE,
    TOVA,
    Dense,
    HiddenExtremes,
    LogSumExp,
    Maps,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Softmax1,
    attached,
    capture,
    measure,
    perplexity,
)
from sinkscope.experiments.audit import audit
from sinkscope.hf.tiny import tiny_model
from tests.support.zoo import build, inputs

SMALL = dict(vocab_size=128, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
IDS = torch.randint(3, 100, (2, 40), generator=torch.Generator().manual_seed(0))

KINDS = {
    "an indexer chooses keys": ("deepseek_v32", "qwen4_exp", "doge"),
    "compressed keys come behind the tokens": ("deepseek_v4",),
    "a bias on the scores": ("inkling_text",),
    "tokens have learned sinks of their own": ("inkling2_text",),
    "layers run several times": ("hrm_text", "dory"),
    "modules that never run": ("bart", "whisper", "minimax"),
    "no class is called attention": ("longcat_flash",),
    "layers differ in their heads": ("dots3_note_text",),
    "batch and heads are one axis": ("xglm",),
    "layers hand on lists, or tokens first": ("openai-gpt", "xlnet"),
    "a cache for two attentions": ("megatron-bert", "xlm"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_those_of_the_models_own_attention_where(kind):
    found = audit(KINDS[kind])
    captured = found[found.check == "capture"]
    assert list(captured.verdict) == ["right"] * len(KINDS[kind]), captured.sentence.tolist()
    assert captured.error.max() < 2e-5


def test_keys_that_are_no_tokens_are_counted_in_the_record():
    record = measure(tiny_model("deepseek_v4"), IDS, [Maps(resolution=None)])
    assert record.attrs["keys_that_are_no_tokens"] == 10
    assert record.sizes["map_key"] == IDS.shape[1]
    sums = record.attention_map.sum("map_key")
    assert float(sums.max()) < 1 + 1e-5 and float(sums.min()) < 0.9  # the others take the rest


def test_cross_attention_that_never_ran_is_no_layer():
    record = measure(tiny_model("bart"), IDS, [SinkMass(), HiddenExtremes()])
    assert list(record.layer) == [0, 1, 2, 3]
    assert not bool(record.sink_mass.isnull().any())


def test_states_of_an_encoder_are_a_stream_of_their_own():
    model = tiny_model("bart")
    with torch.no_grad(), capture(model) as scope:
        model(IDS, encoder_hidden_states=torch.randn(2, 30, 64))
    assert scope.record.sizes["query"] == scope.streams["cross"].record.sizes["query"] == 40


def test_layers_that_share_weights_are_a_layer_in_each_run():
    model = AlbertModel(AlbertConfig(**SMALL, embedding_size=64)).eval()
    with torch.no_grad(), capture(model, [Maps(resolution=None), HiddenExtremes()]) as scope:
        model(IDS)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = model(IDS, output_attentions=True).attentions
    assert list(scope.record.layer) == [0, 1, 2]
    maps = scope.record.attention_map.transpose("layer", "sequence", "head", ...)
    np.testing.assert_allclose(maps, torch.stack(own), atol=1e-6)


def test_a_policy_that_remembers_is_refused_in_layers_that_run_several_times():
    with pytest.raises(SinkscopeError, match="share keys or run several times"):
        attached(tiny_model("dory"), policy=TOVA(8))


def test_an_encoder_with_a_bias_for_distances():
    config = T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4)
    model = T5EncoderModel(config).eval()
    with torch.no_grad(), capture(model, [Maps(resolution=None)]) as scope:
        model(IDS)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = model(IDS, output_attentions=True).attentions
    maps = scope.record.attention_map.transpose("layer", "sequence", "head", ...)
    np.testing.assert_allclose(maps, torch.stack(own), atol=1e-5)


@pytest.mark.slow
def test_padding_is_left_out_beside_a_bias_and_a_choice_of_keys():
    for kind in ("inkling_text", "deepseek_v32"):
        model, row = tiny_model(kind), IDS[:1, :20]
        padded = torch.cat([torch.cat([torch.zeros(1, 6, dtype=torch.long), row], 1), IDS[1:, :26]])
        mask = torch.ones_like(padded)
        mask[0, :6] = 0
        with torch.no_grad(), capture(model, [Maps(resolution=None)]) as scope:
            model(padded, attention_mask=mask)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            own = model(padded, attention_mask=mask, output_attentions=True).attentions
        for layer, maps in enumerate(own):
            ours = scope.record.attention_map.isel(sequence=0, layer=layer).values[:, :20, :20]
            np.testing.assert_allclose(ours, maps[0, :, 6:, 6:], atol=1e-5)


@pytest.mark.slow
def test_layers_that_would_skip_tokens_read_them_all():
    config = Gemma4TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=16, global_head_dim=16, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=128, num_kv_shared_layers=1, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        sliding_window=16, layer_types=["sliding_attention", "full_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(config).eval()
    with torch.no_grad(), capture(model, ALL) as whole:
        logits = model(IDS).logits
    with torch.no_grad(), capture(model, ALL) as scope:
        last = model(IDS, logits_to_keep=1).logits
    np.testing.assert_allclose(last[:, 0], logits[:, -1], atol=1e-6)
    for variable in ("sink_mass", "entropy", "attention_map"):
        np.testing.assert_array_equal(scope.record[variable], whole.record[variable])


def test_tokens_that_come_first_in_hidden_states_are_put_second():
    model = tiny_model("xlnet")
    record = measure(model, IDS, [HiddenExtremes()])
    with torch.no_grad():
        hidden = model.transformer(IDS, output_hidden_states=True).hidden_states
    assert hidden[1].shape == (2, 40, 64)
    np.testing.assert_allclose(record.activation_max[:, 0], hidden[1].abs().amax(-1), rtol=1e-5)
    with pytest.raises(SinkscopeError, match="which axis is which"):
        measure(model, IDS[:, :2], [HiddenExtremes()])


@pytest.mark.slow
def test_forward_passes_on_a_filled_cache_continue_where_layers_choose_keys_or_repeat():
    for kind in ("deepseek_v4", "qwen4_exp", "inkling2_text", "hrm_text", "bailing_hybrid"):
        model, probes = tiny_model(kind), [SinkMass(), Maps(resolution=None)]
        with torch.no_grad(), capture(model, probes) as whole:
            model(IDS)
        with torch.no_grad(), capture(model, probes) as scope:
            cache = model(IDS[:, :30], use_cache=True).cache
            for part in (IDS[:, 30:31], IDS[:, 31:]):
                model(part, cache=cache)
        for variable in ("sink_mass", "attention_map"):
            np.testing.assert_allclose(scope.record[variable], whole.record[variable], atol=2e-5)


def test_pieces_of_attention_are_no_attention():
    sparse = dict(attention_type="block_sparse", block_size=4, num_random_blocks=1)
    windows = dict(embed_dim=24, depths=[1], num_heads=[2], image_size=32, patch_size=4)
    models = {
        "BigBirdBlockSparse": (BigBirdModel(BigBirdConfig(**SMALL, **sparse)), torch.randint(3, 100, (1, 96))),
        "LongformerSelf": (LongformerModel(LongformerConfig(**SMALL, attention_window=[8] * 3)), IDS),
        "CanineSelf": (CanineModel(CanineConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)), IDS),
        "windows": (
            SwinModel(SwinConfig(**windows)),
            torch.randn(2, 3, 32, 32),
        ),
        "resolution": (SegformerModel(SegformerConfig()), torch.randn(2, 3, 32, 32)),
    }
    for said, (model, given) in models.items():
        with torch.no_grad(), capture(model.eval(), FREE), pytest.raises(SinkscopeError, match=said):
            model(given)


@pytest.mark.slow
def test_the_mass_on_sinks_of_tokens_is_what_the_others_leave():
    model = tiny_model("inkling2_text")
    record = measure(model, IDS, [LogSumExp(), Maps(resolution=None)])
    left = 1 - record.attention_map.sum("map_key").rename(map_query="query")
    np.testing.assert_allclose(record.virtual_sink_mass.transpose(*left.dims), left, atol=1e-5)
    with torch.no_grad(), attached(model, normaliser=Softmax1()), pytest.raises(SinkscopeError, match="of its own"):
        model(IDS)


def test_losses_of_a_model_that_chooses_keys_by_what_is_read_with_them_are_those_of_the_whole_text():
    model = tiny_model("doge")
    losses = perplexity(model, IDS, [Dense()], block=7, progress=False).nll[0, :, 1:]
    with torch.no_grad():
        logits = torch.cat([model(row[None]).logits for row in IDS])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].mT, IDS[:, 1:], reduction="none")
    np.testing.assert_allclose(losses, expected, atol=1e-4)


def test_a_policy_beside_a_mask_of_a_layers_own_is_refused():
    with pytest.raises(SinkscopeError, match="by a bias, a mask or a function of its own"):
        attached(tiny_model("doge"), policy=SinkWindow(2, 8))


def test_no_softmax_is_said_for_maps_too():
    with pytest.raises(SinkscopeError, match="no softmax"):
        measure(tiny_model("rwkv"), IDS, [Maps(resolution=None)])


def test_attention_of_a_users_own_is_refused_and_left_as_it_was(monkeypatch):
    def mine(module, query, key, value, attention_mask, **given):
        output, shown = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return output * 0.5, shown

    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", mine)
    model, ids = build("llama"), inputs("llama")["input_ids"]
    model.set_attn_implementation("mine")
    with pytest.raises(SinkscopeError, match=r"attends by 'mine'.*set_attn_implementation"), capture(model):
        pass
    assert model.config._attn_implementation == "mine"
    model.set_attn_implementation("sdpa")
    measure(model, ids)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", mine)
    with pytest.raises(SinkscopeError, match="attends by 'sdpa'"):
        measure(model, ids)


def test_a_configuration_that_asks_for_maps_is_set_aside_and_restored():
    model, ids = build("llama"), inputs("llama")["input_ids"]
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(ZeroDivisionError), capture(model) as scope:
        with torch.no_grad():
            assert not model(ids).attentions
        raise ZeroDivisionError
    assert model.config.output_attentions and model.config._attn_implementation == "eager"
    with torch.no_grad():
        own = torch.stack(model(ids).attentions)
    np.testing.assert_allclose(scope.record.sink_mass.transpose("layer", "sequence", ...), own[..., :4], atol=1e-6)
