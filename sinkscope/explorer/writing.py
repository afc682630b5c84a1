"""Another text in the place of the one that is shown: typed, or written by the model behind a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as w
import torch
from torch import Tensor, nn

from sinkscope.chats import rendered_chat
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.results import HeadMaps, Reading
from sinkscope.explorer.text_model import TextModel
from sinkscope.scope.binding import check_table
from sinkscope.spans import Spans
from sinkscope.streaming.generated import answer_spans, read_prompt
from sinkscope.streaming.turns import encoded
from sinkscope.texts import read_tokens
from sinkscope.tokens import decoder

MOST = 4096  # tokens a map may have
SHOWN = 2048  # tokens of a text that are shown where nobody says how many
LONG = 16384  # tokens the streaming tab plays
GROWTH = 8  # tokens after which the rows of those that were written are shown
ROLE = re.compile(r"^(system|developer|user|assistant|tool):[ \t]*", re.MULTILINE)


@dataclass(frozen=True)
class Draft:
    """A text to be shown.

    Attributes:
        ids: [token].
        spans: of its turns, or None.
        long_ids: [token] of all that was given, which may be more.
    """

    ids: Tensor
    spans: Spans | None
    long_ids: Tensor


@dataclass(frozen=True)
class Written:
    """A prompt and what was written behind it so far; `maps` come now and then, `spans` at the end."""

    ids: list[int]
    new: int
    maps: HeadMaps | None = None
    spans: Spans | None = None


def messages_of(text: str) -> list[dict[str, str]]:
    """A chat that was typed: "user: .." begins a message, and so do the other roles; other words are the user's."""
    parts = ROLE.split(text)
    said = [("user", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    return [{"role": role, "content": words.strip()} for role, words in said if words.strip()]


def chat_ids(tokenizer: Any, messages: Any) -> tuple[Tensor, Spans]:
    """The ids [token] of a chat in the tokenizer's template, and the spans of its turns."""
    chat = rendered_chat(tokenizer, messages)[0]
    ids = torch.tensor(encoded(tokenizer, chat.text))
    return ids, Spans.chat(tokenizer, ids, messages)


def cut(spans: Spans, tokens: int) -> Spans | None:
    """The spans of the first tokens of a text; None where those are in none."""
    labels = spans.labels(spans.tokens)[:tokens]
    return Spans.of_labels(labels, spans.names) if any(labels) else None


def typed(tokenizer: Any, text: str, length: int | None, is_chat: bool) -> Draft:
    """The first `length` tokens of a text, or of a chat, that somebody typed.

    Raises:
        SinkscopeError: no tokenizer, an empty text or chat, one of a single token, a length that no map has, a chat
            template that lacks the roles.
    """
    _check_tokenizer(tokenizer)
    if length is not None and not 2 <= length <= MOST:
        raise SinkscopeError(f"length is {length!r}; give 2 to {MOST:,} tokens, which is what a map may have.")
    spans = None
    if is_chat:
        ids, spans = chat_ids(tokenizer, messages_of(text))
    elif text.strip():
        ids = read_tokens(tokenizer, text=text, limit=LONG)[0]
    else:
        raise SinkscopeError("the text is empty; type two tokens at least.")
    short = ids[: length or SHOWN]
    if len(short) < 2:
        raise SinkscopeError("the text has one token, which has nothing to attend to but itself; type two at least.")
    return Draft(short, None if spans is None else cut(spans, len(short)), ids[:LONG])


def written(
    original: nn.Module,
    tokenizer: Any,
    prompt: Any,
    count: int,
    configuration: Configuration,
    is_overtaken: Callable[[], bool],
) -> Iterator[Written]:
    """What a model writes behind a text or a chat under a configuration, token by token.

    Raises:
        SinkscopeError: no tokenizer, a prompt that is empty or too long, a chat template that lacks its roles, a model
            that ends its answer at once.
    """
    _check_tokenizer(tokenizer)
    text = read_prompt(tokenizer, prompt)
    if len(text.ids) + count > MOST:
        raise SinkscopeError(
            f"the prompt has {len(text.ids):,} tokens, and {count:,} more would be over {MOST:,}, which a map may "
            "have; give a shorter prompt, or fewer new tokens."
        )
    check_table(original, len(text.ids) + count, f"a prompt of {len(text.ids)} tokens with {count} new ones")
    setting = fitted(configuration, len(text.ids) + count)
    setting.check(len(text.ids) + count)
    for token in TextModel(original, torch.tensor(text.ids), tokenizer).write(setting, count, is_overtaken):
        text.answer.append(token)
        ids, maps = text.ids + text.answer, None
        if len(text.answer) % GROWTH == 0:
            read = TextModel(original, torch.tensor(ids), tokenizer).read(setting, len(ids) - 1, is_overtaken)
            maps = next((result.maps for result in read if isinstance(result, Reading)), None)  # it comes first
            read.close()  # type: ignore[attr-defined]
        yield Written(ids, len(text.answer), maps)
    if text.answer and not is_overtaken():
        spans = answer_spans(original, tokenizer, text)
        yield Written(text.ids + text.answer, len(text.answer), spans=spans)


def fitted(asked: Configuration, length: int) -> Configuration:
    """A configuration for another text: no token of that is evicted, and sizes are not beyond it."""
    usual = Configuration.of_text(length)
    sizes = {name: min(getattr(asked, name), length) for name in ("sinks", "window")}
    return replace(asked, evicted=(), since=min(asked.since, usual.since), **sizes)


def plain_text(model: TextModel | None) -> str:
    """The text that is shown, without special tokens; empty without a tokenizer."""
    if model is None or model.tokenizer is None:
        return ""
    return decoder(model.tokenizer, special=False)(model.ids.tolist())


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None:
        raise SinkscopeError("a text is made of tokens by a tokenizer, and there is none; give explore() one.")


class WritingBar(w.VBox):
    """A text to type, how much of it to read, and how much the model is to write behind it."""

    def __init__(self, model: TextModel | None) -> None:
        look: dict[str, Any] = {"style": {"description_width": "initial"}}
        narrow = look | {"layout": {"width": "150px"}}
        wide = look | {"layout": {"width": "100%", "height": "90px"}}
        told = "what is read in the place of the text shown, or what the model goes on from"
        self.words = w.Textarea(plain_text(model), description="text or prompt", tooltip=told, **wide)
        told = "a text; or a chat, in which user:, assistant: or system: at the start of a line begins a message"
        kinds = [("a text", False), ("a chat", True)]
        self.kind = w.Dropdown(options=kinds, description="it is", tooltip=told, **narrow)
        told = "how many tokens of the text are shown at most"
        self.length = w.BoundedIntText(SHOWN, 2, MOST, description="length", tooltip=told, **narrow)
        told = "how many tokens the model writes at most, under the policy and the normaliser asked for"
        self.count = w.BoundedIntText(32, 1, MOST, description="new tokens", tooltip=told, **narrow)
        self.read = w.Button(description="read it", tooltip="show this text in the place of the other")
        self.generate = w.Button(description="generate", tooltip="have the model write behind it, under the policy")
        self.stop = w.Button(description="stop writing", tooltip="keep the text that is shown", disabled=True)
        self.status = w.HTML()
        row = w.HBox([self.kind, self.length, self.read, self.count, self.generate, self.stop],
                     layout={"flex_flow": "row wrap"})  # fmt: skip
        super().__init__([self.words, row, self.status])
        for button in (self.read, self.generate):
            button.disabled = model is None or model.tokenizer is None or bool(model.beside)

    @property
    def fields(self) -> list[w.ValueWidget]:
        """What somebody typed or chose, and finds again beside the next text."""
        return [self.words, self.kind, self.length, self.count]

    @property
    def prompt(self) -> Any:
        """What was typed: a text, or messages."""
        return messages_of(self.words.value) if self.kind.value else self.words.value

    def show_busy(self, is_busy: bool) -> None:
        self.stop.disabled = not is_busy
        self.read.disabled = self.generate.disabled = is_busy
