"""Sequences one behind the other, and segments from all over a text, which never overlap."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch

from sinkscope.errors import SinkscopeError
from sinkscope.sampling import read_segments, segments, sequences
from sinkscope.texts import read_tokens
from tests.support.tokenizers import byte_level

STREAM = torch.arange(10)


def test_sequences_follow_each_other_without_overlap():
    assert sequences(STREAM, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert sequences(STREAM[None], 4, count=2).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sequences(STREAM, 3, bos=99).tolist() == [[99, 2 * i, 2 * i + 1] for i in range(5)]
    for arguments, message in {
        (11, None, None): "but there are 10",
        (3, 4, None): "need 12 tokens",
        (0, None, None): "length is 0",
        (1, None, 99): "length is 1",
        (3, 0, None): "count is 0",
    }.items():
        with pytest.raises(SinkscopeError, match=message):
            sequences(STREAM, arguments[0], arguments[1], bos=arguments[2])
    with pytest.raises(SinkscopeError, match="one stream"):
        sequences(STREAM.reshape(2, 5), 3)


def test_spaced_segments_are_equally_far_from_each_other_and_begin_with_the_text():
    assert segments(STREAM, 2, 3).tolist() == [[0, 1], [3, 4], [6, 7]]
    assert segments(STREAM[None], 3, 2, bos=[7, 7]).tolist() == [[7, 7, 0], [7, 7, 5]]
    assert segments(torch.arange(80), 10).tolist() == torch.arange(80).reshape(8, 10).tolist()


@pytest.mark.slow
def test_random_segments_are_every_choice_without_overlap_equally_often():
    draws = 4500
    found = Counter(tuple(segments(STREAM, 3, 2, starts="random", seed=seed)[:, 0].tolist()) for seed in range(draws))
    possible = [pair for pair in combinations(range(8), 2) if pair[1] - pair[0] >= 3]
    assert found.keys() == set(possible)
    expected = draws / len(possible)
    squares = sum((count - expected) ** 2 / expected for count in found.values())
    assert len(possible) == 15 and squares < 29.1  # chi-square with 14 degrees of freedom, 1%


def test_segments_at_places_of_ones_own():
    assert segments(STREAM, 3, starts=[6, 0]).tolist() == [[0, 1, 2], [6, 7, 8]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 4}, "4 segments with 3 tokens of the text in each need 12 tokens, but there are 10"),
        ({"count": 0}, "count=0 is not a whole number of 1 or more"),
        ({"starts": [0, 2]}, "the segment of 3 tokens from 0 overlaps with that from 2"),
        ({"starts": [8]}, "the segment of 3 tokens from 8 reaches past the end, 10"),
        ({"starts": [0, 5], "count": 3}, "count is 3, but there are 2 starts"),
        ({"starts": "often"}, "starts='often' is unknown: give 'spaced' or 'random'"),
        ({"starts": [-1]}, r"starts=\[-1\] are no places"),
        ({"starts": []}, r"starts=\[\] are no places"),
        ({"starts": 4}, "starts=4 are no places"),
    ],
)
def test_segments_that_cannot_be_had_are_refused(given, message):
    with pytest.raises(SinkscopeError, match=message):
        segments(STREAM, 3, **given)


def test_segments_of_several_texts_are_parts_of_each_with_its_special_tokens(tmp_path):
    tokenizer = byte_level("<s> $A")
    for name in ("one", "two"):
        (tmp_path / name).write_text(" ".join(f"{name}{number}" for number in range(90)))
    files = [str(tmp_path / name) for name in ("one", "two")]
    found = read_segments(tokenizer, files, 16, 3, starts="random", seed=4)
    assert found.shape == (6, 16)
    for rows, file in zip((found[:3], found[3:]), files, strict=True):
        whole = read_tokens(tokenizer, file, 10_000, bos=False)[0].tolist()
        starts = [next(at for at in range(len(whole)) if whole[at : at + 15] == row) for row in rows[:, 1:].tolist()]
        assert starts == sorted(starts) and all(later - at >= 15 for at, later in pairwise(starts))
        assert set(rows[:, 0].tolist()) == {tokenizer.bos_token_id}


def test_texts_that_cannot_be_cut_are_refused_by_name(tmp_path):
    (tmp_path / "short.txt").write_text("ten words")
    for source, message in {
        str(tmp_path / "short.txt"): "short.txt: 8 segments with",
        "hf:some/text": "may have no end: say within how many tokens",
        (str(tmp_path / "short.txt"),) * 2: "has a text twice",
    }.items():
        with pytest.raises(SinkscopeError, match=message):
            read_segments(byte_level("<s> $A"), source, 16)
