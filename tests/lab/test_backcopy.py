"""The Bigram-Backcopy task against a reading of its rule in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from sinkscope.errors import SinkscopeError
from sinkscope.lab.bigram import Backcopy
from sinkscope.lab.runs import Text
from tests.support.training_records import TEXT


def task(triggers: str | None = "at", most: int = 64) -> Backcopy:
    return Backcopy.of(Text("a text", TEXT), triggers, most)


def drawn(of: Backcopy, sequences: int = 400, length: int = 20, seed: int = 0) -> list[str]:
    """Sequences as characters, BOS as ^."""
    ids = of.sample(sequences, length, torch.Generator().manual_seed(seed))
    return ["".join((of.characters + "^")[token] for token in row) for row in ids]


def test_the_transition_is_how_often_each_character_follows_each_in_the_text():
    made = task()
    pairs = Counter(zip(TEXT, TEXT[1:] + TEXT[0], strict=True))
    for row, character in enumerate(made.characters):
        total = sum(count for (before, _), count in pairs.items() if before == character)
        expected = [pairs[character, after] / total for after in made.characters]
        np.testing.assert_allclose(made.transition[row], expected, rtol=1e-12)
    assert set(made.characters) == set(TEXT)


def test_rare_characters_are_left_out_of_the_text_before_its_pairs_are_counted():
    made = task("a", most=3)
    common = [character for character, _ in Counter(TEXT).most_common(3)]
    assert sorted(made.characters) == sorted(common)
    kept = [character for character in TEXT if character in common]
    pairs = Counter(zip(kept, kept[1:] + kept[:1], strict=True))
    row = made.characters.index("a")
    expected = [pairs["a", after] / kept.count("a") for after in made.characters]
    np.testing.assert_allclose(made.transition[row], expected, rtol=1e-12)


def test_after_a_trigger_comes_the_character_before_it_and_nowhere_else_by_rule():
    sequences = drawn(task())
    copied = free = 0
    for text in sequences:
        assert text[0] == "^" and "^" not in text[1:] and text[1] not in "at"
        for before, now, after in zip(text, text[1:], text[2:], strict=False):
            if now in "at":
                assert after == before
                copied += 1
            else:
                assert after in TEXT and (now + after in TEXT + TEXT[0])
                free += 1
    assert copied > 500 and free > 2000


def test_after_other_characters_the_next_is_as_frequent_as_the_bigram_says():
    made = task()
    pairs, totals = Counter(), Counter()
    for text in drawn(made, sequences=2000):
        for now, after in pairwise(text[1:]):
            pairs[now, after] += 1
            totals[now] += 1
    for row, now in enumerate(made.characters):
        if now in made.triggers or totals[now] < 1000:
            continue
        for column, after in enumerate(made.characters):
            chance = made.transition[row, column]
            spread = math.sqrt(chance * (1 - chance) / totals[now])
            assert abs(pairs[now, after] / totals[now] - chance) < 5 * spread + 1e-12, (now, after)  # 5 sigma


def test_first_characters_are_as_frequent_as_in_the_text_without_triggers():
    made = task()
    firsts = Counter(text[1] for text in drawn(made, sequences=4000, length=2))
    others = [character for character in TEXT if character not in "at"]
    for character in set(TEXT):
        chance = others.count(character) / len(others)
        assert abs(firsts[character] / 4000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000) + 1e-12


def test_a_seed_gives_the_same_sequences_and_another_gives_others():
    assert drawn(task(), seed=3) == drawn(task(), seed=3)
    assert drawn(task(), seed=3) != drawn(task(), seed=4)


def test_entropies_are_those_of_the_true_probabilities_and_none_after_a_trigger():
    made = task()
    ids = torch.tensor([[made.bos, made.characters.index("h"), made.characters.index("a")]])
    found = made.entropies(ids)[0].tolist()
    first = [chance for chance in made.first if chance]
    after = [chance for chance in made.transition[made.characters.index("h")] if chance]
    expected = [-sum(chance * math.log(chance) for chance in chances) for chances in (first, after)]
    assert found == pytest.approx([*expected, 0.0])


def test_triggers_are_the_three_most_frequent_characters_that_are_not_white_space():
    common = [character for character, _ in Counter(TEXT).most_common() if character != " "]
    assert set(task(None).triggers) == set(common[:3])


@pytest.mark.parametrize(
    ("text", "triggers", "message"),
    [
        (TEXT, "aZ", "triggers='aZ' are not all among"),
        (TEXT, "", "triggers='' are not all among"),
        ("ababab", "ab", "no character beside the triggers"),
    ],
)
def test_triggers_that_cannot_be_are_refused_in_a_sentence(text, triggers, message):
    with pytest.raises(SinkscopeError, match=message):
        Backcopy.of(Text("a text", text), triggers)
