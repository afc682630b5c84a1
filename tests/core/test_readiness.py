"""Models that cannot be served are refused with a sentence that names them, and left as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification

from sinkscope import (
    Dense,
    Evict,
    Maps,
    Recompute,
    SinkCache,
    SinkscopeError,
    Window,
    ablate,
    attached,
    capture,
    cost,
    perplexity,
    stream,
    time_per_token,
)
from sinkscope.models.requirements import check_decoder
from sinkscope.models.rotary import find_rotations
from sinkscope.scope.binding import native_windows
from tests.support.talking import tokenizer
from tests.support.zoo import DECODERS, ENCODERS, build, inputs

IDS = inputs("llama", 1, 40)["input_ids"]
NOT_CAUSAL, NO_CACHE, NO_HEAD = "not causal", "no keys in a cache|reads no token ids", "no language head"


def made(auto, kind, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return auto.from_config(AutoConfig.for_model(kind, **options)).eval()


def jamba():
    """Two layers of attention between two with states of another kind."""
    options = dict(
        DECODERS["llama"][1], num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=1,
        num_experts_per_tok=1, expert_layer_period=8, mamba_d_state=4, mamba_dt_rank=4,
    )  # fmt: skip
    return made(AutoModelForCausalLM, "jamba", options)


def gemma3n():
    """Ten layers of attention, of which the last five share the keys of those before them."""
    options = dict(
        DECODERS["qwen3"][1], num_hidden_layers=10, num_kv_shared_layers=5, sliding_window=16, laurel_rank=8,
        hidden_size_per_layer_input=16, vocab_size_per_layer_input=128, activation_sparsity_pattern=[0.0] * 10,
        eos_token_id=2,
    )  # fmt: skip
    return made(AutoModelForCausalLM, "gemma3n_text", options)


MODELS = {
    "bert": (lambda: build("bert"), NOT_CAUSAL),
    "bert for masked words": (lambda: made(AutoModelForMaskedLM, *ENCODERS["bert"]), NOT_CAUSAL),
    "modernbert": (lambda: build("modernbert"), f"{NO_CACHE}|{NOT_CAUSAL}"),
    "vit": (lambda: build("vit"), NO_CACHE),
}
HEADLESS = {
    "llama": (lambda: build("llama").model, NO_HEAD),
    "opt": (lambda: build("opt").model, NO_HEAD),  # around its decoder, so its base is another module
    "llama for classes of tokens": (lambda: made(AutoModelForTokenClassification, *DECODERS["llama"]), NO_HEAD),
}
READING = {
    "sink cache": lambda model: SinkCache(model, 4, 8),
    "cost": lambda model: cost(model, Window(8), 20),
}
PREDICTING = {
    "dense": lambda model: perplexity(model, IDS, [Dense()]),
    "window": lambda model: perplexity(model, IDS, [Window(8)]),
    "recompute": lambda model: perplexity(model, IDS, [Recompute(8)]),
    "ablate": lambda model: ablate(model, IDS, (0, 4), 16),
    "stream": lambda model: stream(model, tokenizer(), "the cat"),
    "time per token": lambda model: time_per_token(model, IDS, 16),
}


def state_of(model):
    """All that streaming could change in a model."""
    hooks = [
        len(held)
        for module in model.modules()
        for held in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
    ]
    implementations = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    return hooks, implementations, sorted(vars(model)), model.training


def assert_refuses(call, model, reason):
    before = state_of(model)
    with pytest.raises(SinkscopeError, match=rf"^{type(model).__name__} .*{reason}") as refusal:
        call(model)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
    assert state_of(model) == before


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", READING | PREDICTING)
@pytest.mark.parametrize("name", MODELS)
def test_what_does_not_read_token_by_token_is_refused(name, call):
    make, reason = MODELS[name]
    assert_refuses((READING | PREDICTING)[call], make(), f"does not read token by token .*{reason}")


@pytest.mark.parametrize("call", PREDICTING)
@pytest.mark.parametrize("name", HEADLESS)
def test_what_predicts_no_next_token_is_refused(name, call):
    make, reason = HEADLESS[name]
    assert_refuses(PREDICTING[call], make(), reason)


@pytest.mark.parametrize("name", ["gptj", "llama"])
def test_a_model_that_carries_a_scope_is_tried_on_nothing(name):
    model, given = build(name), inputs(name, 1)
    with torch.no_grad(), capture(model) as scope:
        assert_refuses(find_rotations, model.base_model, "carries a scope")
        model(**given)
    find_rotations(model)  # known from now on
    with torch.no_grad(), capture(model) as later:
        for call in READING.values():
            assert_refuses(call, model.base_model, "carries a scope")
        model(**given)
    for record in (scope.record, later.record):
        assert record.token_id.values.tolist() == given["input_ids"].tolist()


def test_attention_in_chunks_is_refused_to_a_sink_cache_by_its_name():
    assert_refuses(READING["sink cache"], build("llama4"), "attends in chunks")


# --- what is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_of_the_zoo_is_one(name):
    check_decoder(build(name), predicts=True)


def test_a_decoder_without_a_head_has_a_cost_and_a_cache():
    model = build("llama").model
    assert cost(model, Window(8), 20).kv_bytes == cost(build("llama"), Window(8), 20).kv_bytes
    with SinkCache(model, 4, 8) as cache, torch.no_grad():
        model(IDS, cache=cache)
    assert cache.seen == 40


def test_recomputed_windows_need_no_cache_that_can_be_streamed():
    model = build("llama4")
    losses = perplexity(model, IDS, [Recompute(20)]).nll[0, 0]
    with torch.no_grad():
        logits = model(IDS[:, 10:30]).logits[:, -1]
    np.testing.assert_allclose(losses[30], F.cross_entropy(logits, IDS[:, 30]), atol=1e-5)


# --- layers and their cache ---------------------------------------------------------------------------------------


def test_every_attention_layer_has_its_own_window_or_none():
    assert list(native_windows(build("gemma3")).values()) == [16] * 5 + [None]
    assert list(native_windows(build("mistral_sliding")).values()) == [16, 16]
    assert list(native_windows(build("llama")).values()) == [None, None]


def test_layers_that_share_keys_have_no_cost_of_their_own():
    assert_refuses(READING["cost"], gemma3n(), "share keys")


@pytest.mark.slow
def test_layers_that_share_keys_are_read_densely():
    model = gemma3n()
    record = perplexity(model, IDS, [Dense()], block=7)
    with torch.no_grad():
        expected = F.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:], reduction="none")
    np.testing.assert_allclose(record.nll[0, 0, 1:], expected, atol=1e-4)
    assert record.attrs["native_sliding_layers"] == "0, 1, 2, 3, 5, 6, 7, 8"


def test_keys_can_be_taken_away_where_not_every_layer_is_attention():
    with torch.no_grad(), attached(jamba(), policy=Evict([2]), probes=[Maps(resolution=None)]) as scope:
        scope.model(IDS)
    maps = scope.record.attention_map.sel(layer=[1, 3]).values
    assert (maps[..., 3:, 2] == 0).all() and (maps[..., 2, 2] > 0).all()
