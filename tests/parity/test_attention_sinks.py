"""Streams against the package attention_sinks 0.4.0, whose logits are kept: attention_sinks.py made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import sinkscope
from tests.parity.models import DEMO_CACHE, FAMILIES, NEW, RECENT, SINKS, TOKENS, filled, text

RECENT = RECENT
CLOSE = 1e-4  # of logits of the order of 5 to 10


KEPT = Path(__file__).with_name("attention_sinks.npz")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def kept(family):
    """Its logits [token, vocabulary] after each token, and the tokens."""
    with np.load(KEPT) as file:
        return torch.from_numpy(file[f"{family} logits"]), torch.from_numpy(file[f"{family} ids"])[None]


@pytest.fixture
def model(family):
    return filled(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])))


def test_its_text_is_ours_and_sinks_count_in_it(kept, model):
    logits, ids = kept
    assert torch.equal(ids[:, :TOKENS], text())
    with torch.no_grad():
        dense = model(ids).logits[0]
    assert (dense - logits)[: SINKS + RECENT].abs().max() < CLOSE  # nothing was taken away there
    assert (dense - logits)[TOKENS:].abs().max() > 0.1


@pytest.mark.parametrize("piece", [1, 9])
def test_a_sink_cache_gives_its_logits(kept, model, piece):
    logits, ids = kept
    with sinkscope.SinkCache(model, SINKS, RECENT) as cache, torch.no_grad():
        for start in range(0, ids.shape[1], piece):
            some = model(ids[:, start : start + piece], cache=cache).logits[0]
            end = min(start + piece, ids.shape[1])
            assert (some - logits[end - len(some) : end]).abs().max() < CLOSE


def test_greedy_tokens_are_the_same(kept, model):
    _, ids = kept
    model.generation_config.eos_token_id = None  # it goes on
    with sinkscope.SinkCache(model, SINKS, RECENT) as cache:
        options = dict(attention_mask=torch.ones_like(text()), max_new_tokens=NEW, do_sample=False)
        found = model.generate(text(), cache=cache, **options)
    assert torch.equal(found[:, : ids.shape[1]], ids)


@pytest.mark.parametrize("block", [1, 16])
def test_losses_are_those_of_its_logits(kept, model, block):
    logits, ids = kept
    record = sinkscope.perplexity(model, ids, [sinkscope.SinkWindow(SINKS, RECENT)], block=block, progress=False)
    expected = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")
    assert np.abs(record.nll.values.ravel()[-len(expected) :] - expected.numpy()).max() < CLOSE


@pytest.mark.demo
@pytest.mark.slow
def test_losses_of_the_demo_model_are_the_same():
    with np.load(KEPT) as file:
        ids, losses = torch.from_numpy(file["demo ids"])[None], file["demo losses"]
    model, tokenizer = sinkscope.load()
    assert torch.equal(ids, sinkscope.read_tokens(tokenizer, limit=ids.shape[1]))
    record = sinkscope.perplexity(model, ids, [sinkscope.SinkWindow(*DEMO_CACHE)], block=64, progress=False)
    assert np.abs(record.nll.values.ravel()[-len(losses) :] - losses).max() < 2e-4  # of 4.4 nats at most, in float32
