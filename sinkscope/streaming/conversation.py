"""Text without end on a bounded cache: `stream`, and conversations of many turns over it.

A model writes one token after the other, and each is read into the cache before anyone sees it. So whatever ends an
answer, an end token, a limit, an interrupt, the cache holds what was shown. End tokens are not read: they belong to
what comes behind an answer.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.arguments import checks_types, finite_number, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.hf.generation import sampling_rules
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_decoder, check_eval
from sinkscope.scope.forward import check_vocabulary
from sinkscope.streaming.readers import only_last
from sinkscope.streaming.sink_cache import SinkCache
from sinkscope.streaming.turns import Turns, encoded, turns_of
from sinkscope.tokens import decoder, pieces

MAX_NEW_TOKENS = 512
MEGABYTE = 1e6


@checks_types
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

    >>> answer = "".join(sinkscope.stream(model, tokenizer, "the cat", max_new_tokens=4))

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
    sampler = Sampler(temperature, top_k, top_p, seed, reading_device(model))
    ids = encoded(tokenizer, prompt, special=not getattr(cache, "seen", 0))
    decoder(tokenizer)  # or an error that says that it has none
    held = SinkCache(model) if cache is None else cache
    tokens = Writer(model, held, sampler, end_tokens(model, tokenizer), limit).write(ids, Answer())
    return pieces_of(tokenizer, tokens, held if cache is None else None)


class Conversation(AbstractContextManager["Conversation"]):
    """Turns without end with a model, on one bounded cache.

        with Conversation(model, tokenizer) as conversation:
            for piece in conversation.ask("Who wrote the Book of Job?"):
                print(piece, end="", flush=True)

    Turns are put as the tokenizer's chat template does, only what is new of each is read, and an answer ends where the
    model ends it. One that is left half-way, by `break`, an exception or Ctrl-C, stands as far as it was shown, and the
    next turn comes behind it. Without a chat template turns are lines of plain text that the model goes on with.

    >>> with sinkscope.Conversation(model, tokenizer, sinks=2, window=62, max_new_tokens=4) as talk:
    ...     answer = "".join(talk.ask("the cat"))

    Attributes:
        cache: what the model remembers; it knows `held` and `seen` tokens, its `size` and its `nbytes`.
        answer: `tokens` and `rate` (tokens per second) of the last answer, and whether the model ended it.
        has_template: whether there is a chat template.

    Args:
        model: a decoder with a language head, in eval mode.
        tokenizer: that belongs to it.
        cache: what an earlier conversation remembered, as `SinkCache.load` reads what `conversation.cache.save` wrote;
            an empty one when None. It is closed with the conversation.
        sinks, window: first and last tokens that an empty one keeps.
        system: what the model is told first; the template's own, where it has one, when None. Of this, as of all that
            was said, only the sinks and the window are remembered.
        max_new_tokens: of each answer.
        temperature, top_k, top_p, seed: as in `stream`; one series of draws for all turns.

    Raises:
        SinkscopeError: as `stream`, and for a chat template that cannot be followed turn by turn.
    """

    @checks_types
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        cache: SinkCache | None = None,
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
        limit = whole_number(max_new_tokens, "max_new_tokens", 1)
        self._turns = turns_of(tokenizer, system)
        self.has_template = type(self._turns) is not Turns
        ends = end_tokens(model, tokenizer) | self._turns.ends()  # a template that cannot be followed says so now
        sampler = Sampler(temperature, top_k, top_p, seed, reading_device(model))
        self._under_way: Generator[str, None, None] | None = None
        self.answer = Answer()
        self.cache = SinkCache(model, sinks, window) if cache is None else cache
        self._writer = Writer(model, self.cache, sampler, ends, limit)

    @checks_types
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
        self._under_way = pieces_of(self._turns.tokenizer, self._writer.write(ids, self.answer))
        return self._under_way

    @property
    def status(self) -> str:
        """How full the cache is and how fast the last answer came, in a line."""
        cache = self.cache
        rate = f", {self.answer.rate:.1f} tokens/s" if self.answer.tokens else ""
        memory = f"{cache.nbytes / MEGABYTE:.1f} MB"
        return f"cache {cache.held:,} / {cache.size:,} tokens, {memory}, {cache.seen:,} seen{rate}"

    def __repr__(self) -> str:
        return f"Conversation({self.status})"

    def reset(self) -> None:
        """Start over; the memory stays allocated, the draws go on."""
        self._leave_answer()
        self.cache.reset()
        self._writer.unread = []
        self.answer = Answer()

    def close(self) -> None:
        """End an answer under way and take the cache off the model."""
        self._leave_answer()
        self.cache.close()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _leave_answer(self) -> None:
        if self._under_way is not None:
            self._under_way.close()


@dataclass
class Answer:
    """How an answer goes."""

    tokens: int = 0  # written so far
    seconds: float = 0.0  # the model took for them, the time to read the prompt left out
    is_ended: bool = False  # by the model, rather than by a limit or an interrupt

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before the first."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Writer:
    """A model that writes into a cache, until it chooses one of the tokens `ends`, and `limit` tokens at most.

    Attributes:
        unread: tokens of a prompt whose reading was interrupted; the next are read behind them.

    Raises:
        SinkscopeError: another kind of cache.
    """

    @checks_types
    def __init__(self, model: nn.Module, cache: SinkCache, sampler: Sampler, ends: set[int], limit: int) -> None:
        if not isinstance(cache, SinkCache):
            raise SinkscopeError(f"cache is a {type(cache).__name__}; give a SinkCache, which stays bounded.")
        self.cache = cache
        self.unread: list[int] = []
        self._model, self._base, self._options = model, find_anatomy(model).base, only_last(model)
        self._sampler, self._ends, self._limit = sampler, ends, limit

    def write(self, ids: list[int], answer: Answer) -> Iterator[int]:
        """The tokens that the model writes behind `ids`, what is new of a prompt, each once the cache holds it."""
        logits = self._read(ids)
        for _ in range(self._limit):
            begun = time.perf_counter()
            token = self._sampler(logits)
            if token in self._ends:
                answer.is_ended = True
                return
            logits = self._read([token])
            answer.tokens += 1
            answer.seconds += time.perf_counter() - begun
            yield token

    def _read(self, ids: list[int]) -> Tensor:
        """Read what is unread and `ids`; logits [1, token of the vocabulary] behind the last.

        After an exception the cache holds all, some or none of them; with none, it is as if they had not been given.
        """
        given, seen = self.unread + ids, self.cache.seen
        try:
            tokens = torch.tensor([given])
            check_vocabulary(self._base, tokens)
            tokens = tokens.to(reading_device(self._model))
            with torch.no_grad():
                return self._model(tokens, **with_cache(self._model, self.cache), **self._options).logits[:, -1]
        finally:
            if taken := self.cache.seen - seen:
                self.unread = given[taken:]


def check_writer(model: nn.Module) -> None:
    """Raise SinkscopeError for a model that cannot write: no decoder, one without a head, or in training mode."""
    check_decoder(model, predicts=True)
    check_eval(model, "its text")


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens with which a model ends a text: one or several in its generation_config, or else the tokenizer's."""
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return set(found) if isinstance(found, (list, tuple)) else {int(found)}
    return set()


class Sampler:
    """Chooses tokens; the draws are those of `generate()` after `torch.manual_seed(seed)`.

    Raises:
        SinkscopeError: temperature < 0, top_k < 1, or top_p not above 0 and up to 1.
    """

    @checks_types
    def __init__(self, temperature: float, top_k: int | None, top_p: float, seed: int, device: torch.device) -> None:
        heat = finite_number(temperature, "temperature", 0.0, inclusive=True)
        likeliest = None if top_k is None else whole_number(top_k, "top_k", 1)
        share = finite_number(top_p, "top_p", 0.0)
        if share > 1.0:
            raise SinkscopeError(f"top_p={top_p!r} is no probability above 0 and up to 1: give one, such as top_p=0.9.")
        self._rules = sampling_rules(heat, likeliest, share) if heat else None
        self._generator = torch.Generator(device).manual_seed(whole_number(seed, "seed", 0))

    def __call__(self, logits: Tensor) -> int:
        """The token chosen by logits [1, token of the vocabulary]."""
        if self._rules is None:
            return int(logits.argmax())
        weights = self._rules(logits.float()).softmax(-1)
        return int(torch.multinomial(weights, 1, generator=self._generator))


def pieces_of(tokenizer: Any, tokens: Iterable[int], closes: SinkCache | None = None) -> Generator[str, None, None]:
    """The text of tokens without special ones, each piece once its characters are complete; often one word.

    Joined, they are the decoded text, but for part of a character at its end. A cache given is closed behind it.
    """
    with nullcontext() if closes is None else closes:
        yield from filter(None, pieces(decoder(tokenizer, special=False), tokens))
