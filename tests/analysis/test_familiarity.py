"""Recited tokens: runs that a model would write by itself, and that are no copies of the same text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope
from sinkscope.analysis.familiarity import familiarity_note
from sinkscope.errors import SinkscopeError
from tests.support.zoo import build, inputs

LIKELY, UNLIKELY = 0.1, 3.0


def losses(rows, tokens, kind="Dense", model="m"):
    """A record with these losses [sequence, token] under one policy."""
    coords = {"policy": ["it"], "policy_kind": ("policy", [kind]), "token_id": (("sequence", "token"), tokens)}
    data = {"nll": (("policy", "sequence", "token"), np.array(rows, float)[None])}
    return xr.Dataset(data, coords, {"model": model, "text": "t", "kind": "perplexity"})


def test_runs_count_that_are_long_enough_and_not_copied():
    text = np.arange(40)
    text[30:34] = [10, 11, 12, 13]  # in this order before
    nll = np.full(40, UNLIKELY)
    nll[0] = np.nan
    nll[[5, 6, 7]] = LIKELY  # too short
    nll[10:14] = nll[20:26] = nll[30:34] = LIKELY
    found = sinkscope.recited(losses([nll], [text]), run=4)
    assert float(found[0]) == pytest.approx(10 / 39)
    assert float(sinkscope.recited(losses([nll], [text]), run=3)[0]) == pytest.approx(13 / 39)
    assert float(sinkscope.recited(losses([nll], [text]), run=7)[0]) == 0


def test_a_copy_that_goes_on_with_something_new_is_recited_from_there():
    text = np.array([1, 2, 3, 4, 1, 2, 3, 5])
    nll = np.array([np.nan, *[UNLIKELY] * 3, *[LIKELY] * 4])
    assert float(sinkscope.recited(losses([nll], [text]), run=3)[0]) == pytest.approx(3 / 7)


@pytest.mark.slow
@torch.no_grad()
def test_greedy_decoding_writes_what_is_recited():
    """A model that has learned one text: its greedy continuations say which tokens it writes by itself."""
    torch.manual_seed(0)
    model, ids = build("llama"), inputs("llama", 1, 48)["input_ids"]
    with torch.enable_grad():
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(60):
            optimiser.zero_grad()
            model(ids[:, :32], labels=ids[:, :32]).loss.backward()
            optimiser.step()
    model.eval()
    record = sinkscope.perplexity(model, ids, [sinkscope.Dense()], progress=False)
    share = float(sinkscope.recited(record)[0])
    written, run = set(), 8
    for start in range(1, 48 - run + 1):
        prompt = ids[:, :start]
        made = model.generate(prompt, max_new_tokens=run, do_sample=False, pad_token_id=0)
        if torch.equal(made[0, start:], ids[0, start : start + run]):
            written |= set(range(start, start + run))
    assert 0.3 < share < 0.75 and share * 47 <= len(written)
    assert share * 47 == pytest.approx(len(written), abs=2)  # what greedy decoding prefers below one half is missed


def test_the_table_sets_a_text_beside_one_that_is_new():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 10_000, (8, 100))
    known = np.where(np.arange(100) % 50 < 10, LIKELY, UNLIKELY) + random.normal(0, 0.01, (8, 100))
    table = sinkscope.familiarity_table(losses(known, tokens), losses(known + 1, tokens))
    assert table.recited.tolist() == [0.2, 0.0] and table.is_familiar.tolist() == [True, False]
    assert table.loss.tolist() == pytest.approx([known.mean(), known.mean() + 1])
    assert table.recited_low.tolist() == table.recited_high.tolist() == [0.2, 0.0]  # eight texts, and not one
    assert (table.loss_low < table.loss).all() and (table.loss < table.loss_high).all()


def test_a_note_says_it_where_a_text_is_recited_and_nothing_elsewhere():
    tokens = np.arange(100)[None]
    known = np.where(np.arange(100) < 10, LIKELY, UNLIKELY)[None]
    said = familiarity_note(losses(known, tokens))
    assert said.startswith("10% of the text's tokens stand in runs of 8 and more that the model writes by itself")
    assert familiarity_note(losses(known * 0 + UNLIKELY, tokens)) == ""


def test_what_cannot_be_judged_is_refused():
    nll, tokens = np.ones((2, 9)), np.zeros((2, 9), int)
    for record, message in {
        "window": (losses(nll, tokens, kind="Window"), "no losses of dense attention"),
        "tokens": (losses(nll, tokens).drop_vars("token_id"), "does not say which tokens"),
    }.values():
        with pytest.raises(SinkscopeError, match=message):
            sinkscope.recited(record)
    with pytest.raises(SinkscopeError, match="two models"):
        sinkscope.familiarity_table(losses(nll, tokens), losses(nll, tokens, model="other"))


def test_the_second_demo_text_is_long_enough_for_eight_segments():
    text = sinkscope.read_text("demo:ferry")
    assert text.startswith("The Ferry at Askerholm") and len(text.split()) > 4_500
