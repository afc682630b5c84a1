"""What a sink cache refuses, with a reason, before anything in it changes."""

from __future__ import annotations

import pytest
import torch

from sinkscope import SinkCache, SinkscopeError, SinkWindow, attached
from tests.streaming.cached import greedy, run
from tests.streaming.one_token import one_token_run
from tests.support.zoo import build, inputs

SINKS, WINDOW = 4, 28


def test_a_policy_and_a_cache_at_once_are_refused():
    model = build("llama")
    ids = inputs("llama", 1, 20)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache, attached(model, policy=SinkWindow(2, 5)):
        with pytest.raises(SinkscopeError, match="carries a policy already"):
            run(model, ids, cache)
        with pytest.raises(SinkscopeError, match="carries a scope"):
            SinkCache(model, SINKS, WINDOW)


@pytest.mark.parametrize(("sinks", "window"), [(-1, 4), (4, 0), (1.5, 4), (True, 4)])
def test_sizes_that_make_no_cache_are_refused(sinks, window):
    with pytest.raises(SinkscopeError, match="cannot be kept"):
        SinkCache(build("llama"), sinks, window)


def test_a_cache_longer_than_the_model_was_trained_on_is_warned_of():
    with pytest.warns(UserWarning, match="512 positions"), SinkCache(build("llama"), 4, 600):
        pass
    with pytest.raises(SinkscopeError, match="ALiBi distances for 512 tokens"):
        SinkCache(build("mpt"), 4, 508)


def test_a_cache_of_another_model_or_batch_is_refused_before_it_changes():
    model, other = build("llama"), build("llama")
    ids = inputs("llama", 2, 40)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        with pytest.raises(SinkscopeError, match="made for another model"):
            run(other, ids, cache)
        with SinkCache(other, SINKS, WINDOW), pytest.raises(SinkscopeError, match="made for another model"):
            run(other, ids, cache)
        assert (cache.seen, cache.nbytes) == (0, 0)
        run(model, ids, cache)
        with pytest.raises(SinkscopeError, match="2 texts side by side, and was given 1"):
            run(model, ids[:1], cache)
        with pytest.raises(SinkscopeError, match="2 texts side by side, and was given 6"):
            greedy(model, torch.cat([ids, ids], 1), cache, 5, num_beams=3)
        with pytest.raises(SinkscopeError, match="made for another model"):
            run(other, ids[:, :1], cache)
        assert cache.seen == 40
        model.bfloat16()
        with pytest.raises(SinkscopeError, match=r"was torch\.float32, now it is torch\.bfloat16"):
            run(model, ids[:, :1], cache)
    with pytest.raises(SinkscopeError, match="closed"):
        run(model.float(), ids[:, :1], cache)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_a_cache_used_twice_by_mistake_is_refused(family):
    model = build(family)
    ids = inputs(family, 1, 40)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        text = greedy(model, ids, cache, 5)
        for prompt in (ids, ids[:, :3], text[:, :44]):
            with pytest.raises(SinkscopeError, match="has read 44 already"):
                greedy(model, prompt, cache, 5)
        with pytest.raises(SinkscopeError, match="does not continue the 44 tokens"):
            greedy(model, inputs(family, 1, 60, seed=3)["input_ids"], cache, 5)
        with pytest.raises(SinkscopeError, match="nothing new to read"):
            run(model, ids[:, :0], cache)
        assert cache.seen == 44
        assert torch.equal(greedy(model, text, cache, 9), one_token_run(model, ids, SINKS, WINDOW, 14)[1])


def test_assisted_decoding_is_refused():
    model = build("llama")
    ids = inputs("llama", 1, 40)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        with pytest.raises(SinkscopeError, match="cannot be rolled back"):
            greedy(model, ids, cache, 20, prompt_lookup_num_tokens=3)
        with pytest.raises(SinkscopeError, match="cannot be rolled back"):
            cache.crop(-1)
        assert not cache.is_compileable and not cache.is_croppable
