"""Texts that are made to ask something: facts with values drawn at random, and questions whose answer is one token.

Texts are put together of tokens, so that all of one kind are equally long and each distance is exact. The value of a
fact is drawn evenly from a few words, each one token there: whoever has not seen it is right once in as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from string import ascii_lowercase
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sinkscope.arguments import several
from sinkscope.chats import rendered_chat
from sinkscope.errors import SinkscopeError, shown
from sinkscope.tokens import encode, is_tokenizer, no_tokenizer, surrounding

FEWEST = 4  # values that a usual list has to give
VALUES = ((
    "apple", "bread", "bridge", "castle", "cotton", "desert", "dragon", "flower", "forest", "garden", "glass", "gold",
    "horse", "island", "letter", "market", "mirror", "music", "night", "ocean", "orange", "paper", "queen", "river",
    "salt", "silver", "spring", "stone", "summer", "table", "tiger", "winter",
), tuple(ascii_lowercase))  # fmt: skip
"""Words, or letters for a tokenizer of which they are no single tokens."""
KEYS = (
    [str(number) for number in range(100, 1000)],
    ["".join(pair) for pair in product(ascii_lowercase, repeat=2)],
)
"""Names of facts: numbers, or letters for a tokenizer that has none."""
VALUE, KEY = "{value}", "{key}"
T = TypeVar("T", bound=Hashable)


class Frame(NamedTuple):
    """Tokens around what is said: in front of all, between a question and its answer, and behind the answer."""

    front: list[int]
    to_answer: list[int]
    to_next: list[int]


class Asked(NamedTuple):
    """Texts of one length, each with its questions at the same places.

    Attributes:
        texts: [trial, token], the answers among the tokens.
        places: [question] of the tokens that the answers follow.
        answers: [trial, question] which of the choices is right.
        distances: [question] tokens from the value to the place where it is asked for.
    """

    texts: np.ndarray
    places: list[int]
    answers: np.ndarray
    distances: list[int]


@dataclass(frozen=True)
class Wording:
    """A fact and the question about it, as tokens with any tokenizer.

    Args:
        tokenizer: that belongs to the model.
        fact: a text with {value} in it, and {key} where facts have names.
        question: about it, with {key} where facts have names.
        values: words; those of a usual list when None.
        chat: whether questions and answers are turns of the tokenizer's chat template.
    """

    tokenizer: Any
    fact: str
    question: str
    values: Iterable[str] | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        if not is_tokenizer(self.tokenizer):
            raise no_tokenizer(self.tokenizer)
        if self.values is not None:
            object.__setattr__(self, "values", tuple(several(self.values, "values")))
        if not isinstance(self.fact, str) or self.fact.count(VALUE) != 1:
            raise SinkscopeError(f"the fact {shown(self.fact)} has to have {VALUE} in it, once: put it there.")
        if not isinstance(self.question, str) or not self.question.strip():
            raise SinkscopeError(f"question={shown(self.question)} asks nothing; give a text.")
        if not self.lead.strip():
            raise SinkscopeError(f"the fact {shown(self.fact)} has no words before {VALUE}, which the answer follows.")

    @property
    def lead(self) -> str:
        """The words of a fact before its value, which the answer begins with."""
        return self.fact.partition(VALUE)[0]

    def frame(self) -> Frame:
        """What stands around questions and answers; raises SinkscopeError where there is no chat template."""
        if not self.chat:
            return Frame(surrounding(self.tokenizer, self.question)[0], [], encode(self.tokenizer, "\n"))
        said = [("user", "one"), ("assistant", "two"), ("user", "three")]
        chat = rendered_chat(self.tokenizer, [{"role": role, "content": words} for role, words in said])[0]
        ends = [(start, stop) for _, start, stop in chat.parts]
        between = [chat.text[stop:start] for (_, stop), (start, _) in pairwise(ends)]
        return Frame(*(encode(self.tokenizer, each) for each in (chat.text[: ends[0][0]], *between)))

    def choices(self, key: str) -> tuple[list[str], list[int], list[int]]:
        """The words that are one token behind the lead of a fact and behind that of an answer, these tokens, and what
        stands between a lead and each of them."""
        if self.values is None:
            found = next((each for known in VALUES if len((each := self._single(key, known))[0]) >= FEWEST), None)
            if found is None:
                raise SinkscopeError(
                    f"this tokenizer makes no single tokens of usual words or letters behind {self.lead.strip()!r}; "
                    "give values= that it knows."
                )
            return found
        given = list(self.values)
        if not all(isinstance(word, str) and word for word in given) or len(set(given)) < len(given) or len(given) < 2:
            raise SinkscopeError(f"values={shown(given)} have to be words, two at least, each once.")
        found = self._single(key, given)
        if other := [word for word in given if word not in found[0]]:
            raise SinkscopeError(
                f"{other[0]!r} is no single token of its own, like the other values, behind {self.lead.strip()!r} for "
                "this tokenizer; give other values."
            )
        return found

    def _single(self, key: str, known: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
        """As `choices`, of known words."""
        gap = self.lead[len(self.lead.rstrip(" ")) :]
        behind = [self._behind(lead.replace(KEY, key), gap, known) for lead in (self._in_text, self._in_answer)]
        both = {word: rest for word, rest in behind[0].items() if behind[1].get(word) == rest}
        between = most_common(rest[:-1] for rest in both.values())
        found = {word: rest[-1] for word, rest in both.items() if rest[:-1] == between}
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        shared = {token for token, count in Counter(found.values()).items() if count > 1 or token == unknown}
        own = {word: token for word, token in found.items() if token not in shared}  # else it may be no word's own
        return list(own), list(own.values()), list(between or ())

    def fact_tokens(self, key: str = "") -> tuple[list[int], list[int]]:
        """The tokens of a fact before its value, and those behind it."""
        behind = self.fact.partition(VALUE)[2]
        return encode(self.tokenizer, self._in_text.replace(KEY, key)), encode(self.tokenizer, behind) if behind else []

    def question_tokens(self, frame: Frame, key: str = "") -> list[int]:
        """The tokens of a question, and of its answer before the value."""
        question = "\n" + self.question.replace(KEY, key)
        if self.chat:
            return [
                *encode(self.tokenizer, question),
                *frame.to_answer,
                *encode(self.tokenizer, self._in_answer.replace(KEY, key)),
            ]
        return encode(self.tokenizer, question + self._in_answer.replace(KEY, key))

    @property
    def _in_text(self) -> str:
        return self.lead.rstrip(" ")

    @property
    def _in_answer(self) -> str:
        return self.lead.strip() if self.chat else "\n" + self.lead.strip()

    def _behind(self, lead: str, gap: str, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """By word, the tokens that it adds to a text."""
        before, found = encode(self.tokenizer, lead), {}
        for word in words:
            try:
                whole = encode(self.tokenizer, lead + gap + word)
            except SinkscopeError:  # letters that it does not know
                continue
            if whole[: len(before)] == before and len(whole) > len(before):
                found[word] = tuple(whole[len(before) :])
        return found

    def keys(self, frame: Frame) -> list[str]:
        """Names that make facts and questions of equal lengths, each other tokens than the others."""
        for names in KEYS:
            made: dict[str, tuple[tuple[int, ...], int]] = {}
            for name in names:
                try:
                    made[name] = tuple(self.fact_tokens(name)[0]), len(self.question_tokens(frame, name))
                except SinkscopeError:
                    continue
            size = most_common((len(fact), asked) for fact, asked in made.values())
            alike = {fact: name for name, (fact, asked) in made.items() if (len(fact), asked) == size}
            if len(alike) > len(names) // 4:
                return list(alike.values())
        raise SinkscopeError("this tokenizer makes no tokens of numbers or letters, so pairs cannot have names.")


def most_common(values: Iterable[T]) -> T | None:
    """The value that is there most often, the first of several."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def needles(
    wording: Wording, haystack: np.ndarray, length: int, depth: float, trials: int, random: np.random.Generator
) -> Asked:
    """One fact in a piece of a text, and the question at its end: `length` tokens up to the answer."""
    frame = wording.frame()
    _, tokens, between = wording.choices("")
    before, behind = wording.fact_tokens()
    asked = [*wording.question_tokens(frame), *between]
    needle = len(before) + len(between) + 1 + len(behind)
    room = length - len(frame.front) - needle - len(asked)
    if room < 0:
        raise SinkscopeError(
            f"a needle of {needle} tokens, its question of {len(asked)} and {len(frame.front)} in front of all do not "
            f"fit into a text of {length}; give a length of {length - room} or more."
        )
    if room > len(haystack):
        raise SinkscopeError(
            f"a text of {length} tokens around a needle needs {room} of `ids`, and {len(haystack)} were given; give "
            "more, or a smaller length."
        )
    place = round(depth * room)
    answers = random.integers(len(tokens), size=(trials, 1))
    texts = []
    for (answer,) in answers:
        start = int(random.integers(len(haystack) - room + 1))
        hay = haystack[start : start + room].tolist()
        fact = [*before, *between, tokens[answer], *behind]
        texts.append([*frame.front, *hay[:place], *fact, *hay[place:], *asked, tokens[answer]])
    value = len(frame.front) + place + len(before) + len(between)
    return Asked(np.array(texts), [length - 1], answers, [length - value])


class Lines:
    """Facts with names, all of one length, and texts made of them.

    Args:
        wording: of each.

    Raises:
        SinkscopeError: a tokenizer with which there are none.
    """

    def __init__(self, wording: Wording) -> None:
        self.wording, self.frame = wording, wording.frame()
        if KEY not in wording.lead or KEY not in wording.question:
            raise SinkscopeError(f"facts with names and questions about them have {KEY} in them, before {VALUE}.")
        self.names = wording.keys(self.frame)
        _, self.tokens, self.between = wording.choices(self.names[0])
        before, behind = wording.fact_tokens(self.names[0])
        self.value = len(before) + len(self.between)  # the place of the value in a line
        self.size = self.value + 1 + len(behind)

    def pairs(self, count: int, depth: float, trials: int, random: np.random.Generator) -> Asked:
        """So many facts, and a question about the one at this depth."""
        at, answers, texts = round(depth * (count - 1)), np.zeros((trials, 1), dtype=int), []
        for trial in range(trials):
            names, values = self._drawn(count, random)
            lines = (self._line(*each) for each in zip(names, values, strict=True))
            text = [*self.frame.front, *(token for line in lines for token in line), *self._question(names[at])]
            answers[trial] = values[at]
            texts.append([*text, self.tokens[values[at]]])
        answer = len(texts[0]) - 1
        return Asked(
            np.array(texts), [answer - 1], answers, [answer - len(self.frame.front) - at * self.size - self.value]
        )

    def stream(self, count: int, every: int, back: int, trials: int, random: np.random.Generator) -> Asked:
        """So many facts, and behind every few of them a question about the one so many facts back, with its answer."""
        if (count // every) * every <= back:
            raise SinkscopeError(
                f"nothing can be asked about the line {back} lines back, behind every {every} of {count} lines; give "
                "more lines, or a smaller back."
            )
        texts, answers = [], []
        for _ in range(trials):
            names, values = self._drawn(count, random)
            text, at, places, asked = list(self.frame.front), [], [], []
            for number, each in enumerate(zip(names, values, strict=True)):
                at.append(len(text) + self.value)
                text += self._line(*each)
                if (number + 1) % every == 0 and number >= back:
                    text += self._question(names[number - back])
                    places.append(len(text) - 1)
                    asked.append(number - back)
                    text += [self.tokens[values[number - back]], *self.frame.to_next]
            texts.append(text[: places[-1] + 2])
            answers.append([values[number] for number in asked])
        away = [place + 1 - at[number] for place, number in zip(places, asked, strict=True)]
        return Asked(np.array(texts), places, np.array(answers), away)

    def _drawn(self, count: int, random: np.random.Generator) -> tuple[list[str], list[int]]:
        """Names, each once, and values."""
        if count > len(self.names):
            raise SinkscopeError(
                f"{count} facts need as many names, and there are {len(self.names)} of equally many tokens; give fewer."
            )
        names = random.choice(len(self.names), count, replace=False)
        return [self.names[name] for name in names], random.integers(len(self.tokens), size=count).tolist()

    def _line(self, name: str, value: int) -> list[int]:
        before, behind = self.wording.fact_tokens(name)
        return [*before, *self.between, self.tokens[value], *behind]

    def _question(self, name: str) -> list[int]:
        """The tokens of a question, up to the answer."""
        return [*self.wording.question_tokens(self.frame, name), *self.between]
