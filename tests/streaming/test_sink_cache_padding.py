"""Batches padded on the left: each row gives what it gives alone."""

from __future__ import annotations

import pytest
import torch

from sinkscope import SinkCache, SinkscopeError
from tests.streaming.one_token import one_token_run
from tests.support.zoo import build, inputs

SINKS, WINDOW, CLOSE = 4, 28, 1e-4
FAMILIES = ["llama", "gpt_neox", "gemma3", "bloom", "mpt", "falcon_alibi", "gptj", "deepseek_v3", "mistral_sliding"]


def padded(family, lengths, width):
    """Texts of some lengths [text, width], and their mask."""
    ids = inputs(family, len(lengths), width)["input_ids"]
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def check_rows(model, sequences, scores, lengths, width, new):
    for row, length in enumerate(lengths):
        logits, tokens = one_token_run(model, sequences[row : row + 1, width - length : width], SINKS, WINDOW, new)
        assert torch.equal(tokens[0], sequences[row, width - length :])
        assert (scores[row] - logits[0, length - 1 :]).abs().max() < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("lengths", "width"), [([12, 5, 9], 12), ([60, 3, 41], 60)])
def test_rows_padded_on_the_left_generate_as_they_do_alone(family, lengths, width):
    model = build(family)
    ids, mask = padded(family, lengths, width)
    options = {"max_new_tokens": 50, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with SinkCache(model, SINKS, WINDOW) as cache:
        cache._store.room = 45
        output = model.generate(ids, attention_mask=mask, cache=cache, **options)
    check_rows(model, output.sequences, torch.stack(output.logits, 1), lengths, width, 50)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_beams_of_padded_rows_score_what_the_rows_score_alone(family):
    model = build(family)
    lengths, width = [12, 5], 12
    ids, mask = padded(family, lengths, width)
    options = {"max_new_tokens": 40, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    with SinkCache(model, SINKS, WINDOW) as cache:
        found = model.generate(ids, attention_mask=mask, cache=cache, num_beams=3, **options)
    for row, length in enumerate(lengths):
        logits, _ = one_token_run(model, found.sequences[row : row + 1, width - length :], SINKS, WINDOW)
        chosen = logits[0, length - 1 : -1].log_softmax(-1).gather(-1, found.sequences[row, width:, None])
        assert abs(float(chosen.sum()) / 40 - float(found.sequences_scores[row])) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7])
def test_prompts_may_come_in_chunks(chunk):
    model = build("llama")
    ids, mask = padded("llama", [45, 5], 45)
    options = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with SinkCache(model, SINKS, WINDOW) as cache:
        output = model.generate(ids, attention_mask=mask, cache=cache, prefill_chunk_size=chunk, **options)
    check_rows(model, output.sequences, torch.stack(output.logits, 1), [45, 5], 45, 20)


@pytest.mark.slow
def test_a_padded_batch_goes_on_in_a_second_turn():
    model = build("llama")
    ids, mask = padded("llama", [12, 5], 12)
    with SinkCache(model, SINKS, WINDOW) as cache:
        first = model.generate(ids, attention_mask=mask, cache=cache, max_new_tokens=30, do_sample=False)
        longer = torch.cat([first, inputs("llama", 2, 6, seed=9)["input_ids"]], 1)
        mask = torch.cat([mask, torch.ones(2, 36, dtype=torch.long)], 1)
        second = model.generate(longer, attention_mask=mask, cache=cache, max_new_tokens=20, do_sample=False)
    for row, length in enumerate([12, 5]):
        _, tokens = one_token_run(model, longer[row : row + 1, 12 - length :], SINKS, WINDOW, 20)
        assert torch.equal(tokens[0], second[row, 12 - length :])


def test_masks_that_are_no_padding_on_the_left_are_refused():
    model = build("llama")
    ids, mask = padded("llama", [12, 5], 12)
    with SinkCache(model, SINKS, WINDOW) as cache, torch.no_grad():
        with pytest.raises(SinkscopeError, match="pad on the left"):
            model(ids, attention_mask=mask.flip(1), cache=cache)
        with pytest.raises(SinkscopeError, match="makes its own masks"):
            model(ids, attention_mask=torch.zeros(1, 1, 12, 12), cache=cache)
        assert cache.seen == 0
        model(ids, attention_mask=mask, cache=cache)
        one = ids[:, :1]
        with pytest.raises(SinkscopeError, match="has the shape"):
            model(one, attention_mask=torch.ones(2, 1), cache=cache)
        with pytest.raises(SinkscopeError, match="other padding"):
            model(ids[:, :2], attention_mask=torch.ones(2, 14), cache=cache)
        with pytest.raises(SinkscopeError, match="behind or inside"):
            model(one, attention_mask=torch.cat([mask, torch.zeros(2, 1)], 1), cache=cache)
        assert cache.seen == 12
