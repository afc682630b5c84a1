"""A budget of memory picks how much is read at once, and what cannot fit is refused before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope as S
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.models import memory
from sinkscope.models.memory import PIECE, TILES, available_memory, shown_bytes, sizes_of
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=2, tokens=120)["input_ids"]
WAYS = [S.Dense(), S.SinkWindow(4, 20)]
KEPT = 2 * 120 * 2 * 2 * 2 * 16 * 4  # texts, tokens, keys and values, layers, heads, numbers, bytes


def budget(tokens: int) -> int:
    """Bytes with which so many tokens of both texts are read at once, by the formula written out."""
    activations = 2 * 4 * (6 * 64 + 4 * 128)  # the head of the vocabulary is outside the layers
    widest = max(each.shape[0] for name, each in build("llama").model.named_parameters() if "proj" in name)
    activations = 2 * 4 * (6 * 64 + 4 * widest)
    return TILES + PIECE * 128 + KEPT + 2 * tokens * (activations + 128 * 4)


def refusing_passes(model):
    def fail(*_):
        raise AssertionError("something ran")

    model.model.layers[0].register_forward_pre_hook(fail)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 7, 50])
def test_blocks_are_as_large_as_the_budget_allows_and_losses_stay(tokens):
    model = build("llama")
    whole = S.perplexity(model, IDS, WAYS, progress=False)
    record = S.perplexity(model, IDS, WAYS, max_memory=budget(tokens), progress=False)
    assert record.attrs["block"] == tokens and whole.attrs["block"] == 1024
    np.testing.assert_allclose(record.nll, whole.nll, atol=2e-5)


def test_a_budget_that_holds_all_changes_nothing():
    record = S.perplexity(build("llama"), IDS, WAYS, max_memory=10**12, block=64, progress=False)
    assert record.attrs["block"] == 64


@pytest.mark.slow
def test_cells_of_an_ablation_keep_within_a_budget():
    model, factors = build("llama"), dict(sinks=(0, 2), cache_size=16, progress=False)
    whole = S.run_ablation(model, IDS, **factors)
    record = S.run_ablation(model, IDS, max_memory=budget(7), **factors)
    assert record.attrs["block"] == 7 and whole.attrs["block"] == 1024
    np.testing.assert_allclose(record.nll, whole.nll, atol=2e-5)
    with pytest.raises(SinkscopeError, match=r"under `sinks 0.16`.* at least .* and max_memory is 1.0 MB"):
        S.ablate(model, IDS, max_memory=10**6, **factors)


def test_a_budget_for_not_one_token_is_refused_with_what_it_takes():
    model = build("llama")
    with pytest.raises(
        SinkscopeError, match=r"takes about 5\d\.\d MB at least beside the weights, and max_memory is 1.0"
    ):
        S.perplexity(model, IDS, WAYS, max_memory=10**6)
    with pytest.raises(SinkscopeError, match=r"under `recompute 30`.* takes about .* and max_memory is"):
        S.perplexity(model, IDS, [S.Recompute(30)], max_memory=10**6)
    with pytest.raises(SinkscopeError, match=r"measuring 2 texts of up to 120 tokens.* takes about"):
        S.measure(model, IDS, max_memory=10**6)
    for wrong in (0, -1, 1.5, "1 GB"):
        with pytest.raises(SinkscopeError, match="max_memory="):
            S.perplexity(model, IDS, WAYS, max_memory=wrong)


@pytest.mark.slow
def test_what_is_more_than_is_free_is_refused_before_anything_runs(monkeypatch):
    S.perplexity(build("llama"), IDS, WAYS, progress=False)
    monkeypatch.setattr(memory, "available_memory", lambda device: 10**7)
    for call in (
        lambda model: S.perplexity(model, IDS, [S.Dense()]),
        lambda model: S.measure(model, IDS),
        lambda model: S.measure(model, IDS, [S.Maps()]),
        lambda model: S.ablate(model, IDS, 2, 16),
    ):
        with pytest.raises(
            SinkscopeError, match=r"takes about .* MB beside the weights, and 10.0 MB are free on cpu; give"
        ):
            call(build("llama"))


def test_fewer_texts_run_together_under_a_budget_and_the_record_stays():
    model, texts = build("llama"), inputs("llama", 6, 40)["input_ids"]
    sizes, seen = sizes_of(model), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole = S.measure(model, texts, [S.SinkMass()])
    made = 6 * 2 * 4 * 40 * 4  # texts, layers, heads, queries, bytes
    most = TILES + 2 * made + 2 * 40 * sizes.measuring
    record = S.measure(model, texts, [S.SinkMass()], max_memory=most)
    assert seen == [6, 2, 2, 2]
    np.testing.assert_allclose(record.sink_mass, whole.sink_mass, atol=1e-6)


def test_a_cache_that_cannot_fit_is_refused_when_the_first_tokens_come():
    model = build("llama")
    with S.SinkCache(model, 4, 10**12) as cache, torch.no_grad():
        with pytest.raises(SinkscopeError, match=r"a cache of 1,000,000,000,004 tokens of 2 texts takes about .* TB"):
            model(IDS, **with_cache(model, cache))
        assert cache.nbytes == 0


def test_what_is_free_is_told_in_words_that_are_right():
    assert 10**6 < available_memory(torch.device("cpu")) < 10**14
    told = [shown_bytes(count) for count in (512, 1_500_000, 23 * 10**9, 5 * 10**12)]
    assert told == ["512 bytes", "1.5 MB", "23.0 GB", "5.0 TB"]
