"""What is timed when a token is timed: the right tokens seen, the bytes counted; never the times themselves."""

from __future__ import annotations

import pytest
import torch

from sinkscope.analysis.costs import time_per_token
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.timing import FAMILIES, STEPS, Decoder
from sinkscope.figures import decode_cost
from sinkscope.hf.tiny import tiny_model
from sinkscope.policies import Dense, Recompute, SinkWindow, Window
from sinkscope.streaming.cost import cost
from sinkscope.streaming.sink_cache import SinkCache
from tests.support import zoo

HYBRIDS = ("qwen3_next", "falcon_h1", "lfm2")
NAMES = ("llama", "gemma2", "gpt_neox", "falcon_alibi", "mpt", "deepseek_v3", "mistral_sliding")
LONG = 16
CLOSE = 1e-4  # logits are of the order of 5; float32 sums in another order


def text(name: str, tokens: int = 60) -> torch.Tensor:
    return zoo.inputs(name, 1, tokens)["input_ids"]


def policies(size: int) -> dict:
    return {"dense": Dense(), "window": Window(size), "recompute": Recompute(size), "sinks": SinkWindow(4, size - 4)}


def model_and_text(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    return (tiny_model(name), text("llama") % 32) if name in HYBRIDS else (zoo.build(name), text(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + HYBRIDS)
def test_bytes_and_operations_are_those_of_cost(name):
    model, ids = model_and_text(name)
    table = time_per_token(model, ids, (LONG, 2 * LONG), repeats=2, progress=False)
    assert list(table["policy"]) == [*FAMILIES, *FAMILIES] and sorted(set(table["cache_size"])) == [LONG, 2 * LONG]
    assert (table["low"] <= table["milliseconds"]).all() and (table["milliseconds"] <= table["high"]).all()
    assert (table["low"] > 0).all()
    for row in table.itertuples():
        policy = policies(row.cache_size)[row.policy]
        counted = cost(model, policy, row.cache_size)
        assert row.kv_bytes_kept == counted.kv_bytes
        assert row.flops_per_token == cost(model, policy, row.cache_size + 1).flops_per_token
        assert row.samples == (2 if row.policy == "recompute" else 2 * STEPS)
        if row.policy in ("dense", "recompute"):
            assert row.kv_bytes == counted.kv_bytes
        else:
            assert counted.kv_bytes < row.kv_bytes <= allocated(model, ids, policy)


def allocated(model, ids, policy) -> int:
    """What the cache says of itself."""
    with SinkCache(model, *policy.kept) as cache, torch.no_grad():
        model(ids[:, : policy.cache_size + 1], cache=cache)
        return cache.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + HYBRIDS)
def test_a_step_of_each_policy_sees_what_the_policy_says(name):
    model, ids = model_and_text(name)
    with torch.no_grad():
        dense = Decoder(model, ids[:, :LONG], Dense())
        whole = model(ids[:, : LONG + 2]).logits[0]
        for _ in range(3):  # it does not grow
            assert (dense.step(ids[:, LONG : LONG + 1]) - whole[LONG]).abs().max() < CLOSE
            dense.rewind()
        again = Decoder(model, ids[:, :LONG], Recompute(LONG))
        for at in (LONG, LONG + 1):
            alone = model(ids[:, at + 1 - LONG : at + 1]).logits[0, -1]
            assert (again.step(ids[:, at : at + 1]) - alone).abs().max() < CLOSE
        evicting = Decoder(model, ids[:, :LONG], SinkWindow(4, LONG - 4))
        with SinkCache(model, 4, LONG - 4) as cache:
            for at in range(LONG + 3):
                reference = model(ids[:, at : at + 1], cache=cache).logits[0, -1]
                if at >= LONG:
                    assert (evicting.step(ids[:, at : at + 1]) - reference).abs().max() < CLOSE
        evicting.close()


def test_the_model_is_left_as_it_was():
    model = zoo.build("llama")
    before = (dict(vars(model)), dict(model.model._forward_pre_hooks))
    time_per_token(model, text("llama"), LONG, "sinks", repeats=1, progress=False)
    assert (dict(vars(model)), dict(model.model._forward_pre_hooks)) == before


@pytest.mark.slow
def test_the_table_names_its_source_and_can_be_drawn():
    table = time_per_token(zoo.build("llama"), text("llama")[0], LONG, repeats=1, progress=False, text="a book")
    for name in ("model", "dtype", "threads", "machine", "attention", "repeats", "date"):
        assert name in table.attrs
    assert table.attrs["kind"] == "decode" and table.attrs["text"] == "a book" and table.attrs["tokens"] == 60
    assert "thread" in decode_cost(table).get_supxlabel()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cache_sizes": 60}, "more tokens than the largest cache"),
        ({"cache_sizes": ()}, "one size at least"),
        ({"cache_sizes": 0}, "cache_sizes"),
        ({"cache_sizes": 4}, "sinks=4 leave no room"),
        ({"policies": "windows"}, "cannot be timed"),
        ({"policies": ()}, "cannot be timed"),
        ({"repeats": 0}, "repeats"),
        ({"sinks": 0}, "sinks"),
    ],
)
def test_bad_settings_are_one_sentence(given, words):
    with pytest.raises(SinkscopeError, match=words):
        time_per_token(zoo.build("llama"), text("llama"), **{"cache_sizes": LONG, "repeats": 1, **given})


def test_several_texts_and_models_that_cannot_be_streamed_are_refused():
    with pytest.raises(SinkscopeError, match="one text"):
        time_per_token(zoo.build("llama"), zoo.inputs("llama", 2, 60)["input_ids"], LONG)
    with pytest.raises(SinkscopeError, match="position"):
        time_per_token(zoo.build("gpt2"), text("gpt2"), LONG, repeats=1)
