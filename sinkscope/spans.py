"""Spans: named parts of a text, as ranges of its tokens; words, sentences, turns of a chat, or any of one's own.

    spans = Spans(["title", "body"], [(0, 5), [(5, 40), (44, 60)]])  # a range of tokens, or several, for each name
    spans = Spans.words(tokenizer, ids)
    record = sinkscope.measure(model, ids, [sinkscope.SpanMass(spans)])

Where a token stands in the text is seen by decoding it behind the others, so that any tokenizer will do that decodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from sinkscope.arguments import MOST_PLACES, checks_types, is_listed, is_whole, whole_number
from sinkscope.chats import NO_TURN, THINK, labelled_turns, rendered_chat
from sinkscope.errors import SinkscopeError, shown
from sinkscope.places import ids_of, majority, moved, same_words, specials, text_of_tokens, texts_of
from sinkscope.tokens import encode

REST = "rest"
SPECIAL = "special"
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
SENTENCE = re.compile(r"\S(?:.*?[.!?…]+['\"”’)\]]*(?=\s|$)|.*?(?=\n\s*\n|$)|.*)", re.DOTALL)
"""Up to a full stop, an exclamation or a question mark before a blank, up to an empty line, or to the end."""

Range = tuple[int, int]


@dataclass(frozen=True, repr=False)
class Spans:
    """Named parts of one text that do not overlap; tokens between them belong to none.

    >>> sinkscope.Spans(["question", "answer"], [(0, 12), (12, 40)]).names
    ('question', 'answer')

    Args:
        names: of the spans, each once.
        rows: for each name its tokens: a range (start, stop) of places in the text, without `stop`, or several.

    Raises:
        SinkscopeError: names that are no different words, ranges that are empty, begin before the text or overlap.
    """

    names: Sequence[str]
    rows: Sequence[Any]

    def __post_init__(self) -> None:
        names, rows = _checked_names(self.names), _listed(self.rows, "rows")
        if len(names) != len(rows):
            raise SinkscopeError(f"Spans has {len(names)} names and {len(rows)} rows; give the tokens of each name.")
        ranges = tuple(_checked_ranges(name, row) for name, row in zip(names, rows, strict=True))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "rows", ranges)
        placed = sorted((*each, name) for name, row in zip(names, ranges, strict=True) for each in row)
        for (_, stop, one), (start, _, other) in pairwise(placed):
            if start < stop:
                raise SinkscopeError(
                    f"the spans {one!r} and {other!r} overlap at token {start}; give ranges that share no token."
                    if one != other
                    else f"two ranges of the span {one!r} overlap at token {start}; give each token once.",
                    page="Spans: attention between parts of a text",
                )

    @property
    def tokens(self) -> int:
        """Tokens up to and including the last that is in a span."""
        return max(stop for row in self.rows for _, stop in row)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        more = f", .. ({len(self)} spans)" if len(self) > 6 else ""
        return f"Spans({', '.join(self.names[:6])}{more})"

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """Number of the span, start and stop of every range, in the order of the text."""
        placed = ((start, stop, number) for number, row in enumerate(self.rows) for start, stop in row)
        yield from ((number, start, stop) for start, stop, number in sorted(placed))

    def numbers(self, tokens: int) -> np.ndarray:
        """[token] the number of the span of each token of a text, -1 for none.

        Raises:
            SinkscopeError: spans that reach beyond so many tokens.
        """
        self.check(tokens)
        found = np.full(int(tokens), -1)
        for number, start, stop in self.ranges():
            found[start:stop] = number
        return found

    def labels(self, tokens: int) -> list[str]:
        """The name of the span of each token of a text, "" for none; SinkscopeError as `numbers`."""
        return ["" if number < 0 else self.names[number] for number in self.numbers(tokens)]

    def check(self, tokens: int) -> None:
        """Raise SinkscopeError where they reach beyond a text of so many tokens."""
        tokens = whole_number(tokens, "tokens", 1, MOST_PLACES)
        for number, _, stop in self.ranges():
            if stop > tokens:
                raise SinkscopeError(
                    f"the span {self.names[number]!r} reaches to token {stop - 1}, and the text has {tokens} tokens, 0 "
                    f"to {tokens - 1}; give spans of this text."
                )

    @checks_types
    def with_rest(self, tokens: int, name: str = REST) -> Spans:
        """The spans, and one more of all tokens that are in none: together every token of a text of so many."""
        return Spans.of_labels([label or name for label in self.labels(tokens)], self.names)

    # --- of what --------------------------------------------------------------------------------------------------

    @classmethod
    def of_labels(cls, labels: Iterable[str], names: Iterable[str] = ()) -> Spans:
        """Spans from a name for each token, "" for none.

        Args:
            labels: of each token of the text.
            names: those to come first, in their order; the others follow as the text has them.
        """
        labels = [str(label) for label in _listed(labels, "labels")]
        rows: dict[str, list[Range]] = {str(name): [] for name in _listed(names, "names")}
        start = 0
        for label, run in groupby(labels):
            stop = start + len(list(run))
            if label:
                rows.setdefault(label, []).append((start, stop))
            start = stop
        there = {name: row for name, row in rows.items() if row}
        if not there:
            raise SinkscopeError(f"none of the {len(labels)} tokens is in a span; give a name to one at least.")
        return cls(list(there), list(there.values()))

    @classmethod
    def at(cls, tokenizer: Any, ids: Any, offsets: Mapping[str, Any]) -> Spans:
        """Spans by places in the text: characters (start, stop), or several such ranges, for each name.

        A token belongs where most of its characters stand, blanks aside. The text is that of the tokens joined, as
        `text_of_tokens` gives it, special tokens written out.
        """
        if not isinstance(offsets, Mapping):
            raise SinkscopeError(f"offsets={shown(offsets)} are none; give a dict, name to (start, stop) characters.")
        texts, names = texts_of(tokenizer, ids), list(_checked_names(list(offsets)))
        length = sum(map(len, texts))
        marks = np.full(length, -1)
        for number, (name, row) in enumerate(offsets.items()):
            for start, stop in _checked_ranges(name, row):
                if stop > length:
                    raise SinkscopeError(
                        f"the span {name!r} reaches to character {stop}, and the text has {length}; give offsets in it."
                    )
                if (marks[start:stop] >= 0).any():
                    other = names[marks[start:stop].max()]
                    raise SinkscopeError(f"the spans {other!r} and {name!r} overlap; give ranges that share nothing.")
                marks[start:stop] = number
        return cls._of_marks(texts, marks, names)

    @classmethod
    def matching(cls, tokenizer: Any, ids: Any, patterns: str | re.Pattern[str] | Mapping[str, Any]) -> Spans:
        """Spans of what regular expressions find: all that one finds under its name, or each find of a single one.

        Spans.matching(tokenizer, ids, {"number": r"\\d+", "name": r"[A-Z]\\w+"})
        Spans.matching(tokenizer, ids, r"Chapter \\d+")  # "Chapter 1", "Chapter 2", ..
        """
        texts = texts_of(tokenizer, ids)
        text = "".join(texts)
        if isinstance(patterns, Mapping):
            found = {name: _found(pattern, text) for name, pattern in patterns.items()}
            if empty := [name for name, each in found.items() if not each]:
                raise SinkscopeError(f"the pattern of {empty[0]!r} finds nothing in the text; give one that does.")
            return cls.at(tokenizer, ids, found)
        each = _found(patterns, text)
        if not each:
            raise SinkscopeError(f"the pattern {shown(patterns)} finds nothing in the text; give one that does.")
        marks = np.full(len(text), -1)
        for number, (start, stop) in enumerate(each):
            marks[start:stop] = number
        return cls._of_marks(texts, marks, _numbered(text[start:stop] for start, stop in each))

    @classmethod
    def words(cls, tokenizer: Any, ids: Any) -> Spans:
        """Every word, its subwords joined; punctuation, line breaks and special tokens are words too.

        Words that are there again have a number: "the", "the (2)". Every token is in one.
        """
        texts = texts_of(tokenizer, ids)
        text = "".join(texts)
        marks = np.full(len(text), -1)
        for number, (start, stop) in enumerate(_found(WORD, text)):
            marks[start:stop] = number
        special = specials(tokenizer, ids, texts)
        found = majority(texts, marks)
        for place in range(len(texts) - 2, -1, -1):  # a blank goes with the word behind it, a line break is its own
            if found[place] < 0 and not texts[place].strip(" ") and not special[place + 1]:
                found[place] = found[place + 1]
        starts, known = [], None
        for place, (mark, is_special) in enumerate(zip(found, special, strict=True)):
            if is_special or mark < 0 or mark != known:
                starts.append(place)
            known = None if is_special or mark < 0 else mark
        ranges = list(pairwise([*starts, len(texts)]))
        spoken = ("".join(texts[start:stop]) for start, stop in ranges)
        return cls(_numbered(each.strip() or repr(each)[1:-1] for each in spoken), ranges)

    @classmethod
    def sentences(cls, tokenizer: Any, ids: Any) -> Spans:
        """Every sentence, by its full stop, or an empty line: "sentence 1", "sentence 2", .. .

        Special tokens are apart: "special".
        """
        texts = texts_of(tokenizer, ids)
        text, special = "".join(texts), specials(tokenizer, ids, texts)
        marks = np.full(len(text), -1)
        for number, (start, stop) in enumerate(_found(SENTENCE, text)):
            marks[start:stop] = number
        known: dict[int, str] = {}
        labels, last = [], ""
        for mark, is_special in zip(majority(texts, marks), special, strict=True):
            if is_special:
                last = SPECIAL
            elif mark >= 0:  # a blank goes with what is before it
                last = known.setdefault(mark, f"sentence {len(known) + 1}")
            labels.append(last)
        return cls.of_labels(labels)

    @classmethod
    def special(cls, tokenizer: Any, ids: Any) -> Spans:
        """The special tokens of a text, those that stand for no text, under their names: "<s>", "<|im_end|>", .. ."""
        texts = texts_of(tokenizer, ids)
        special = specials(tokenizer, ids, texts)
        if not any(special):
            raise SinkscopeError("the text has no special tokens; give ids that the tokenizer made with them.")
        return cls.of_labels(text if each else "" for text, each in zip(texts, special, strict=True))

    @classmethod
    def images(cls, model: Any, ids: Any) -> Spans:
        """The tokens that stand for images in a text: "image 1", "image 2", .., and "text" for the others."""
        from sinkscope.hf.models import placeholder_ids  # here: spans of a record need no transformers

        marks, tokens = placeholder_ids(model), ids_of(ids)
        if not set(marks) & set(tokens):
            raise SinkscopeError("no token of the text stands for an image; give the input_ids of its processor.")
        labels, count = [], 0
        for is_image, run in groupby(tokens, lambda token: token in marks):
            count += is_image
            labels += [f"image {count}" if is_image else "text" for _ in run]
        return cls.of_labels(labels)

    @classmethod
    def documents(cls, tokenizer: Any, ids: Any, documents: Sequence[str] | Mapping[str, str]) -> Spans:
        """The documents of a prompt, given as they stand in it, in their order: "document 1", .., or under names."""
        named = documents if isinstance(documents, Mapping) else {
            f"document {number}": each for number, each in enumerate(_listed(documents, "documents"), 1)
        }  # fmt: skip
        text, offsets, place = text_of_tokens(tokenizer, ids), {}, 0
        for name, document in named.items():
            if not isinstance(document, str) or not document:
                raise SinkscopeError(f"{name} is {shown(document)}; give the words of the document.")
            start = text.find(document, place)
            if start < 0:
                raise SinkscopeError(
                    f"{name} ({shown(document)}) does not stand in the text behind those before it; give documents as "
                    "the prompt has them, in its order."
                )
            place = start + len(document)
            offsets[name] = (start, place)
        return cls.at(tokenizer, ids, offsets)

    @classmethod
    @checks_types
    def chat(
        cls,
        tokenizer: Any,
        ids: Any,
        messages: Sequence[Mapping[str, Any]],
        roles: Sequence[str] | None = None,
        *,
        each: bool = False,
        think: tuple[str, str] = THINK,
    ) -> Spans:
        """What was said in a chat, by who said it, where the tokenizer's own template puts it.

        Spans are the roles of the messages ("system", "user", "assistant", ..), "think" for what stands between the
        tags of `think` or in a message's `reasoning_content`, and "template" for all that nobody said: headers, end
        tokens, a system prompt of the template's own.

        Args:
            tokenizer: with a chat template.
            ids: what `tokenizer.apply_chat_template(messages)` gives, with or without the header of an answer.
            messages: dicts with "role" and "content".
            roles: those asked for, each of which has to be there; all when None.
            each: whether every turn has a span of its own: "user 1", "user 2", .. .
            think: the tags around thinking.

        Raises:
            SinkscopeError: no messages, no chat template, one that cannot render them, that leaves out or changes what
                is said, or has no such role; ids of something else.
        """
        text, wanted = text_of_tokens(tokenizer, ids), None if roles is None else _checked_names(roles)
        chat = rendered_chat(tokenizer, messages, think)
        if not any(same_words(text, whole.text) for whole in chat):
            if any(ids_of(ids) == encode(tokenizer, whole.text) for whole in chat):
                raise SinkscopeError(
                    "the tokens that the tokenizer makes of this chat do not read as it does, so where each turn "
                    "stands cannot be told; leave out the words that it does not know, or give another tokenizer."
                )
            raise SinkscopeError(
                "the ids are not those of these messages in the tokenizer's chat template; give what "
                "tokenizer.apply_chat_template(messages) makes of them.",
                page="Spans: attention between parts of a text",
            )
        whole = next(whole for whole in chat if same_words(text, whole.text))
        turns = labelled_turns(whole, each)
        names = sorted(dict.fromkeys(turns), key=lambda name: name == NO_TURN)  # that last
        marks = moved(np.array([names.index(turn) for turn in turns]), whole.text, text)
        spans = cls._of_marks(texts_of(tokenizer, ids), marks, names)
        if wanted is None:
            return spans
        own = {name: name.rsplit(" ", 1)[0] if each and name != NO_TURN else name for name in spans.names}
        if missing := [role for role in wanted if role not in own.values()]:
            there = ", ".join(dict.fromkeys(own.values()))
            raise SinkscopeError(
                f"the chat template has no {missing[0]!r} in these messages, but {there}; ask for some of those."
            )
        kept = [(name, row) for name, row in zip(spans.names, spans.rows, strict=True) if own[name] in wanted]
        return cls([name for name, _ in kept], [row for _, row in kept])

    @classmethod
    def _of_marks(cls, texts: list[str], marks: np.ndarray, names: list[str]) -> Spans:
        """Spans from the number of the span of each character, -1 for none."""
        numbers = majority(texts, marks)
        if missing := [name for number, name in enumerate(names) if number not in numbers]:
            raise SinkscopeError(
                f"the span {missing[0]!r} has no token of its own: it is a part of one that stands mostly elsewhere; "
                "give a longer range, or leave it out."
            )
        return cls.of_labels(["" if number < 0 else names[number] for number in numbers], names)


def _found(pattern: Any, text: str) -> list[Range]:
    """Where a pattern finds something, an empty find left out."""
    try:
        return [found.span() for found in re.finditer(pattern, text) if found.group()]
    except (re.error, TypeError) as problem:
        raise SinkscopeError(f"{shown(pattern)} is no regular expression ({problem}); give one.") from problem


def _numbered(names: Iterable[str]) -> list[str]:
    """Names, each once: those that are there again with a number."""
    counts: dict[str, int] = {}
    taken: list[str] = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        taken.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return taken if len(set(taken)) == len(taken) else [f"{name} #{place}" for place, name in enumerate(taken)]


def _listed(given: Any, name: str) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise SinkscopeError(f"{name}={shown(given)} is no list; give one.")
    return list(given)


def _checked_names(names: Any) -> tuple[str, ...]:
    listed = _listed(names, "names")
    if not listed or not all(isinstance(name, str) and name for name in listed) or len(set(listed)) < len(listed):
        raise SinkscopeError(f"names={shown(names)} are no different words for spans; give each one of its own.")
    return tuple(map(str, listed))


def _checked_ranges(name: str, row: Any) -> tuple[Range, ...]:
    """The ranges of one span in their order, of which a single pair is one."""
    listed = row.tolist() if hasattr(row, "tolist") else _listed(row, f"the row of {name!r}")
    listed = [tuple(listed)] if len(listed) == 2 and not any(map(is_listed, listed)) else listed
    if not listed:
        raise SinkscopeError(f"the span {name!r} is empty; give it a token at least, or leave it out.")
    for each in listed:
        if not is_listed(each) or len(each) != 2 or not all(is_whole(end) for end in each):
            raise SinkscopeError(f"the span {name!r} has the range {shown(each)}; give (start, stop), whole numbers.")
        start, stop = each
        if start < 0:
            raise SinkscopeError(f"the span {name!r} begins at {start}, before the text; places count from 0.")
        if stop <= start:
            raise SinkscopeError(
                f"the span {name!r} is empty: its range ({start}, {stop}) holds nothing; give stop > start."
            )
    return tuple(sorted((int(start), int(stop)) for start, stop in listed))
