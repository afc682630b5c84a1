"""What stands in the place of the first tokens."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from sinkscope.experiments.ablation import with_first_tokens
from sinkscope.experiments.intervention import line_break_token
from tests.experiments.ablating import COMBINATION, Tokenizer, ablated


@pytest.mark.slow
def test_random_tokens_depend_on_the_seed_and_on_nothing_else(model, ids):
    def perplexities(**more):
        table = ablated(model, ids, positions="cache", cache_size=16, kinds=("first", "random"), **more)
        return table.set_index(COMBINATION)["ppl"]

    first, again, other = perplexities(seed=1), perplexities(seed=1), perplexities(seed=2)
    pd.testing.assert_series_equal(first, again)
    changed = first != other
    assert changed[16, "random", "cache", 4] and changed.groupby("kind").sum()["first"] == 0


def test_fewer_random_sinks_are_the_first_of_more():
    text = torch.arange(50)
    texts = [text, text]
    most = with_first_tokens(texts, "random", 16, 128, 4)
    assert not torch.equal(most[0][:16], most[1][:16])
    for count in range(16):
        for row, changed in enumerate(with_first_tokens(texts, "random", count, 128, 4)):
            assert torch.equal(changed[:count], most[row][:count]) and torch.equal(changed[count:], text[count:])


def test_a_blank_that_the_tokenizer_puts_before_every_text_is_no_line_break():
    assert line_break_token(Tokenizer(5, 13)) == 13
    assert line_break_token(Tokenizer(13)) == 13
