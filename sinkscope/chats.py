"""Where a chat template puts what was said: the template is rendered once with it and once with marks in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.errors import SinkscopeError, first_line, shown

THINK = ("<think>", "</think>")
THINKING = "think"
NO_TURN = "template"
FIELDS = ("reasoning_content", "reasoning", "thinking", "content")
MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Part:
    """Something said: by whom, in which of the messages, and its words."""

    role: str
    message: int
    words: str


@dataclass(frozen=True)
class Rendered:
    """A chat as its template has it.

    Attributes:
        text: of all.
        parts: what was said, with its place among the characters: (part, start, stop).
        opens: whether the header of an answer stands at the end.
    """

    text: str
    parts: tuple[tuple[Part, int, int], ...]
    opens: bool


def checked_tags(think: Any) -> tuple[str, str]:
    """The tags around thinking, or SinkscopeError."""
    listed = list(think) if isinstance(think, (tuple, list)) else []
    if len(listed) != 2 or not all(isinstance(tag, str) and tag for tag in listed) or listed[0] == listed[1]:
        raise SinkscopeError(f"think={shown(think)} is no pair of tags; give two different texts, such as {THINK}.")
    return listed[0], listed[1]


def rendered_chat(tokenizer: Any, messages: Any, think: tuple[str, str] = THINK) -> list[Rendered]:
    """A chat without and with the header of an answer at its end.

    Raises:
        SinkscopeError: no messages, no chat template, one that cannot render them, or that leaves out or changes what
            is said.
    """
    checked, think = checked_messages(messages), checked_tags(think)
    if not getattr(tokenizer, "chat_template", None) or not callable(getattr(tokenizer, "apply_chat_template", None)):
        raise SinkscopeError(
            f"this {type(tokenizer).__name__} has no chat template, so messages cannot be put together; give the "
            "prompt as a text, or set tokenizer.chat_template.",
            page="A chat",
        )
    parts, marked = _marked(checked, think)
    return [_located(tokenizer, checked, marked, parts, opens) for opens in (False, True)]


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as a list of dicts with a role and something said."""
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise SinkscopeError(f"messages={shown(messages)} are none; give a list of dicts with role and content.")
    if not messages:
        raise SinkscopeError("the chat is empty: it has no messages; give one at least.")
    for each in messages:
        if not isinstance(each, Mapping) or not isinstance(each.get("role"), str) or not each["role"]:
            raise SinkscopeError(f"{shown(each)} is no message; give a dict with role and content.")
        if all(value is None for name, value in each.items() if name != "role"):
            raise SinkscopeError(f"{shown(each)} says nothing; give it content, or leave it out.")
        if each["role"] in (NO_TURN, THINKING):
            raise SinkscopeError(
                f"a message has the role {each['role']!r}, which is the name of another span; call it otherwise."
            )
    return [dict(each) for each in messages]


def labelled_turns(chat: Rendered, each: bool = False) -> list[str]:
    """The name of the span of each character: who said it, with the number of the turn where `each`."""
    labels = [NO_TURN] * len(chat.text)
    turns: dict[str, list[int]] = {}
    for part, start, stop in chat.parts:
        own = turns.setdefault(part.role, [])
        if part.message not in own:
            own.append(part.message)
        name = f"{part.role} {own.index(part.message) + 1}" if each else part.role
        labels[start:stop] = [name] * (stop - start)
    return labels


def _marked(messages: list[dict[str, Any]], think: tuple[str, str]) -> tuple[list[Part], list[dict[str, Any]]]:
    """What was said, and the messages with marks in its place."""
    parts: list[Part] = []

    def mark(role: str, number: int, words: str) -> str:
        if not words.strip():
            return words
        parts.append(Part(role, number, words))
        return f"\ue000{len(parts) - 1}\ue001"

    def marks(role: str, number: int, words: str) -> str:
        if MARK.search(words):
            raise SinkscopeError("a message has the marks U+E000 and U+E001 in it, which spans are found by.")
        begin, end = think
        before, tag, behind = words.partition(end)
        if role != "assistant" or not tag:
            return mark(role, number, words)
        opened, begins, thought = before.partition(begin)
        thought = thought if begins else opened
        front = (mark(role, number, opened) if opened.strip() else opened) + begins if begins else ""
        return front + mark(THINKING, number, thought) + tag + mark(role, number, behind)

    made = []
    for number, message in enumerate(messages):
        changed = dict(message)
        for name in FIELDS:
            given, role = message.get(name), message["role"] if name == "content" else THINKING
            if isinstance(given, str):
                changed[name] = marks(role, number, given)
            elif name == "content" and isinstance(given, (list, tuple)):
                changed[name] = [
                    {**each, "text": marks(role, number, each["text"])}
                    if isinstance(each, Mapping) and isinstance(each.get("text"), str)
                    else each
                    for each in given
                ]
        made.append(changed)
    return parts, made


def _located(tokenizer: Any, messages: Any, marked: Any, parts: list[Part], opens: bool) -> Rendered:
    text, frame = (render(tokenizer, each, opens) for each in (messages, marked))
    pieces = MARK.split(frame)  # literal, number, literal, number, .., literal
    literals, numbers = pieces[::2], [int(number) for number in pieces[1::2]]
    for number, part in enumerate(parts):
        if part.role != THINKING and number not in numbers:  # templates drop what was thought in earlier turns
            raise SinkscopeError(
                f"the chat template leaves out what {part.role!r} says in message {part.message}; leave that out, or "
                "set tokenizer.chat_template to another one."
            )
    found, place = [], len(literals[0])
    fits = text.startswith(literals[0])
    for number, literal in zip(numbers, literals[1:], strict=True):
        words = parts[number].words
        said = (each for each in (words, words.strip(), words.lstrip(), words.rstrip()))
        own = next((each for each in said if text.startswith(each + literal, place)), None)
        if not fits or own is None:
            fits = False
            break
        found.append((parts[number], place, place + len(own)))
        place += len(own) + len(literal)
    if not fits or place != len(text):
        raise SinkscopeError(
            "the chat template changes what is said, so where each turn stands cannot be told; set "
            "tokenizer.chat_template to one that puts messages as they are.",
            page="A chat",
        )
    return Rendered(text, tuple(found), opens)


def render(tokenizer: Any, messages: Any, opens: bool) -> str:
    """The text of messages, with the header of an answer if it `opens` one."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
    except Exception as error:  # whatever a template, or the code of a tokenizer, may raise
        raise SinkscopeError(
            f"the chat template cannot render these messages: {first_line(error).rstrip('.')}; leave out what it does "
            "not take, or set tokenizer.chat_template to another one."
        ) from error
    if not isinstance(text, str):
        raise SinkscopeError(f"the chat template gives a {type(text).__name__} and no text; give another tokenizer.")
    return text
