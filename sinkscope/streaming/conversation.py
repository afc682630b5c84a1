"""Text without end on a bounded cache: `stream`, and conversations of many turns over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError, first_line
from sinkscope.streaming.sink_cache import SinkCache
from sinkscope.streaming.writing import Answer, Reader, Sampler, TextPieces, check_writer, end_tokens, write

MAX_NEW_TOKENS = 512
MEGABYTE = 1e6


def stream(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    *,
    cache: SinkCache | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """The text with which a model goes on from a prompt, in pieces as they come.

        for piece in sinkscope.stream(model, tokenizer, "Once upon a time"):
            print(piece, end="", flush=True)

    The pieces are complete characters; joined, they are what `generate()` with the same cache gives. Each is in the
    cache when it comes, so the loop may be left at any time, and the next call goes on from what was shown. Of the
    model's generation_config only the end tokens are used, and they are not read into the cache.

    Args:
        model: a decoder with a language head, in eval mode.
        tokenizer: that belongs to it.
        prompt: plain text; no chat template is applied, see `Conversation`.
        cache: goes on from what it holds; the special tokens of a start are left out then. When None, one with the
            default size, closed at the end.
        max_new_tokens: tokens at most.
        temperature: 0 takes the likeliest token each time; otherwise tokens are drawn.
        top_k, top_p: draw among the k likeliest, or those that together have probability p.
        seed: of the draws.

    Raises:
        SinkscopeError: no tokenizer, a prompt without tokens, a limit or a sampling option that makes no sense, a model
            that cannot be streamed.
    """
    check_writer(model)
    limit = whole_number(max_new_tokens, "max_new_tokens", 1)
    sampler = Sampler(temperature, top_k, top_p, seed, _device(model))
    ids = encode(tokenizer, prompt, special=not getattr(cache, "seen", 0))
    held = SinkCache(model) if cache is None else cache
    tokens = write(Reader(model, held), ids, sampler, end_tokens(model, tokenizer), limit, Answer())
    return _pieces(tokenizer, tokens, held if cache is None else None)


class Conversation:
    """Turns without end with a model, on one bounded cache.

        with Conversation(model, tokenizer) as conversation:
            for piece in conversation.ask("Who wrote the Book of Job?"):
                print(piece, end="", flush=True)

    Turns are put as the tokenizer's chat template does, only what is new of each is read, and an answer ends where the
    model ends it. One that is left half-way, by `break`, an exception or Ctrl-C, stands as far as it was shown, and the
    next turn comes behind it. Without a chat template turns are lines of plain text that the model goes on with.

    Attributes:
        cache: what the model remembers; it knows `held` and `seen` tokens, its `size` and its `nbytes`.
        answer: `tokens` and `rate` (tokens per second) of the last answer, and whether the model ended it.
        has_template: whether there is a chat template.

    Args:
        model: a decoder with a language head, in eval mode.
        tokenizer: that belongs to it.
        sinks, window: first and last tokens that the cache keeps.
        system: what the model is told first; the template's own, where it has one, when None. Of this, as of all that
            was said, only the sinks and the window are remembered.
        max_new_tokens: of each answer.
        temperature, top_k, top_p, seed: as in `stream`; one series of draws for all turns.

    Raises:
        SinkscopeError: as `stream`, and for a chat template that cannot be followed turn by turn.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        sinks: int = 4,
        window: int = 1020,
        system: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_writer(model)
        self._limit = whole_number(max_new_tokens, "max_new_tokens", 1)
        self._turns = turns_of(tokenizer, system)
        self._ends = end_tokens(model, tokenizer) | self._turns.ends()
        self._sampler = Sampler(temperature, top_k, top_p, seed, _device(model))
        self._tokenizer = tokenizer
        self._under_way: Generator[str, None, None] | None = None
        self.has_template = not isinstance(self._turns, PlainTurns)
        self.answer = Answer()
        self.cache = SinkCache(model, sinks, window)
        self._reader = Reader(model, self.cache)

    def ask(self, text: str) -> Iterator[str]:
        """The answer to a turn, in pieces as they come; an answer still under way ends here.

        A turn interrupted before any of it was read has not been; otherwise it stands.

        Raises:
            SinkscopeError: a turn without text, or one that the template refuses.
        """
        self._leave_answer()
        if not text.strip():
            raise SinkscopeError(f"the turn {text!r} has no text; say something.")
        ids = self._turns.later(text) if self.cache.seen else self._turns.first(text)
        self.answer = Answer()
        tokens = write(self._reader, ids, self._sampler, self._ends, self._limit, self.answer)
        self._under_way = _pieces(self._tokenizer, tokens)
        return self._under_way

    @property
    def status(self) -> str:
        """How full the cache is and how fast the last answer came, in a line."""
        cache = self.cache
        parts = [
            f"cache {cache.held:,} / {cache.size:,} tokens",
            f"{cache.nbytes / MEGABYTE:.1f} MB",
            f"{cache.seen:,} seen",
        ]
        return ", ".join([*parts, f"{self.answer.rate:.1f} tokens/s"] if self.answer.tokens else parts)

    def __repr__(self) -> str:
        return f"Conversation({self.status})"

    def reset(self) -> None:
        """Start over; the memory stays allocated, the draws go on."""
        self._leave_answer()
        self.cache.reset()
        self._reader.unread = []
        self.answer = Answer()

    def close(self) -> None:
        """End an answer under way and take the cache off the model."""
        self._leave_answer()
        self.cache.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _leave_answer(self) -> None:
        if self._under_way is not None:
            self._under_way.close()


def _pieces(tokenizer: Any, tokens: Iterator[int], closes: SinkCache | None = None) -> Generator[str, None, None]:
    """The text of tokens; a cache given is closed behind it."""
    text = TextPieces(tokenizer)
    with nullcontext() if closes is None else closes:
        for token in tokens:
            if piece := text.add(token):
                yield piece


def _device(model: nn.Module) -> Any:
    return next(model.parameters()).device


STAND_IN = "\ue000"


@dataclass(frozen=True)
class Turns(ABC):
    """How turns become tokens.

    Attributes:
        tokenizer: of transformers.
        system: what the model is told before the first turn, or None.
    """

    tokenizer: Any
    system: str | None = None

    @abstractmethod
    def first(self, text: str) -> list[int]:
        """The ids that open a conversation."""

    @abstractmethod
    def later(self, text: str) -> list[int]:
        """The ids that come behind an answer, whose end token, if the model chose one, was not read."""

    @abstractmethod
    def ends(self) -> set[int]:
        """Tokens that end an answer."""


class PlainTurns(Turns):
    """Without a template: plain text, a line for each turn, that the model goes on with."""

    def first(self, text: str) -> list[int]:
        return encode(self.tokenizer, text if self.system is None else f"{self.system}\n{text}", special=True)

    def later(self, text: str) -> list[int]:
        return encode(self.tokenizer, f"\n{text}")

    def ends(self) -> set[int]:
        return set()


class TemplateTurns(Turns):
    """As the tokenizer's chat template renders them."""

    def first(self, text: str) -> list[int]:
        return encode(self.tokenizer, self._render([("user", text)]))

    def later(self, text: str) -> list[int]:
        rendered = self._render([("user", "?"), ("assistant", STAND_IN), ("user", text)])
        _, found, behind = rendered.partition(STAND_IN)
        if not found:
            raise SinkscopeError(
                "the chat template leaves out earlier answers, so a conversation cannot go on turn by turn; "
                "set tokenizer.chat_template to another one."
            )
        return encode(self.tokenizer, behind)

    def ends(self) -> set[int]:
        """The token the template puts behind an answer, if that is a special one."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special} | set(self.tokenizer.all_special_ids)
        return {self.later("?")[0]} & special

    def _render(self, turns: list[tuple[str, str]]) -> str:
        system = [] if self.system is None else [("system", self.system)]
        messages = [{"role": role, "content": text} for role, text in system + turns]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            raise SinkscopeError(
                f"the chat template cannot render this conversation: {first_line(error)}; leave out the system prompt "
                "or set tokenizer.chat_template to another one."
            ) from error


def turns_of(tokenizer: Any, system: str | None = None) -> Turns:
    """By the tokenizer's chat template, or as plain text where it has none.

    Raises:
        SinkscopeError: no tokenizer, or a template that cannot be followed.
    """
    check_tokenizer(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        return PlainTurns(tokenizer, system)
    turns = TemplateTurns(tokenizer, system)
    turns.ends()  # one that cannot be followed says so before the first turn
    return turns


def encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The ids of a text, with the special tokens that the tokenizer adds by itself if `special`.

    Raises:
        SinkscopeError: no tokenizer, or a text without tokens.
    """
    check_tokenizer(tokenizer)
    try:
        ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    except Exception as error:
        raise SinkscopeError(f"the tokenizer cannot encode this text: {first_line(error)}.") from error
    if not text or not ids:
        raise SinkscopeError(f"the text {text!r} has no tokens; give one to go on from.")
    return ids


def check_tokenizer(tokenizer: Any) -> None:
    """Raise SinkscopeError without a tokenizer."""
    if not callable(tokenizer):
        raise SinkscopeError(f"text needs a tokenizer, got {tokenizer!r}; give the one that belongs to this model.")
