"""What cannot be ablated is refused in one sentence, before any cell runs."""

from __future__ import annotations

import pytest

from sinkscope import ablate
from sinkscope.errors import SinkscopeError
from tests.experiments.ablating import FACTORS, LINE_BREAK, Tokenizer
from tests.support import zoo


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(sinks=-1), "sinks=-1 is not a whole number of 0 or more"),
        (dict(sinks=(0, 1.5)), "sinks=1.5 is not a whole number"),
        (dict(sinks=()), r"sinks=\(\) is empty; give at least one"),
        (dict(sinks="4"), "sinks='4' is not a whole number"),
        (dict(sinks=16, cache_size=(24, 16)), "sinks=16 leave no room in cache_size=16"),
        (dict(cache_size=0), "cache_size=0 is not a whole number of 1 or more"),
        (dict(cache_size=88), "a text of 90 tokens evicts nothing from a cache of 88; give 91 tokens or more"),
        (dict(positions="text"), "positions='text' is unknown; give one of cache, original"),
        (dict(kinds=("first", "last")), "kinds='last' is unknown; give one of first, line breaks, random"),
        (dict(seed=-1), "seed=-1 is not a whole number of 0 or more"),
        (dict(resamples=0), "resamples=0 is not a whole number of 1 or more"),
        (dict(block=0), "block=0 is not a whole number of 1 or more"),
        (dict(tokenizer=None), 'kinds="line breaks" needs a tokenizer'),
        (dict(tokenizer=Tokenizer(5, 6, last="?")), "no token that is a line break and nothing else"),
        (dict(tokenizer=Tokenizer()), "no token that is a line break"),
        (dict(tokenizer=Tokenizer(500)), "token id 500 is outside the vocabulary of 128 tokens"),
    ],
)
def test_what_cannot_be_ablated_is_one_sentence(model, ids, forwards, given, message):
    with pytest.raises(SinkscopeError, match=message):
        ablate(model, ids, **(FACTORS | dict(tokenizer=Tokenizer(LINE_BREAK)) | given))
    assert forwards.count == 0


def test_a_family_that_cannot_be_streamed_is_refused(ids):
    with pytest.raises(SinkscopeError, match="GPT2LMHeadModel"):
        ablate(zoo.build("gpt2"), ids, (0, 4), 16)


def test_original_positions_are_refused_where_they_cannot_be_counted(ids, tmp_path):
    with pytest.raises(SinkscopeError, match=r'FalconForCausalLM .* in the cache; give positions="cache"'):
        ablate(zoo.build("falcon_rotary"), ids, (0, 4), 16, positions=("cache", "original"), folder=tmp_path)
    assert not list(tmp_path.iterdir())  # not even of the cells that could have been run


def test_a_model_in_training_mode_is_refused(model, ids):
    with pytest.raises(SinkscopeError, match="training mode"):
        ablate(model.train(), ids, (0, 4), 16)


def test_what_is_no_model_is_refused(ids):
    with pytest.raises(SinkscopeError, match="A model is a name, a path or a torch module, not a int"):
        ablate(3, ids, (0, 4), 16)
    with pytest.raises(SinkscopeError, match=r"There is no model at './nowhere'"):
        ablate("./nowhere", ids, (0, 4), 16)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(model, ids, forwards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkscopeError, match="file/cells' cannot be made"):
        ablate(model, ids, (0, 4), 16, folder=tmp_path / "file" / "cells")
    assert forwards.count == 0


def test_a_cache_longer_than_the_trained_length_is_warned_of(ids):
    model = zoo.build("llama")
    model.config.max_position_embeddings = 32
    with pytest.warns(UserWarning, match="a cache of 40 tokens is longer than the 32 positions") as caught:
        ablate(model, ids, (0, 4), 40, resamples=20)
    assert {each.filename for each in caught} == {__file__}


@pytest.mark.slow
def test_the_shortest_text_that_evicts_is_taken(model, ids):
    assert ablate(model, ids, (0, 1), 87, resamples=20).attrs["tokens_evicted"] == 1
