"""A model that writes: one token after the other, each read into a bounded cache before anyone sees it.

So whatever ends an answer, an end token, a limit, an interrupt, the cache holds what was shown. End tokens are not
read: they belong to what comes behind an answer.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.arguments import finite_number, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.hf.generation import sampling_rules
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_decoder, check_eval
from sinkscope.scope.forward import check_vocabulary
from sinkscope.streaming.sink_cache import SinkCache


@dataclass
class Answer:
    """How an answer goes.

    Attributes:
        tokens: written so far.
        seconds: the model took for them, the time to read the prompt left out.
        is_ended: whether the model ended it, rather than a limit or an interrupt.
    """

    tokens: int = 0
    seconds: float = 0.0
    is_ended: bool = False

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before the first."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Reader:
    """Reads tokens into a cache.

    Args:
        model: a decoder with a language head, in eval mode.
        cache: made for it.

    Attributes:
        unread: tokens of a prompt whose reading was interrupted; the next are read behind them.

    Raises:
        SinkscopeError: another kind of cache.
    """

    def __init__(self, model: nn.Module, cache: SinkCache) -> None:
        if not isinstance(cache, SinkCache):
            raise SinkscopeError(f"cache is a {type(cache).__name__}; give a SinkCache, which stays bounded.")
        self.cache = cache
        self.unread: list[int] = []
        self._model, self._base = model, find_anatomy(model).base
        takes_count = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if takes_count else {}

    def read(self, ids: list[int]) -> Tensor:
        """Read what is unread and `ids`; logits [1, token of the vocabulary] behind the last.

        After an exception the cache holds all, some or none of them; with none, it is as if they had not been given.
        """
        given, seen = self.unread + ids, self.cache.seen
        try:
            return self._logits(given)
        finally:
            if taken := self.cache.seen - seen:
                self.unread = given[taken:]

    @torch.no_grad()
    def _logits(self, ids: list[int]) -> Tensor:
        tokens = torch.tensor([ids])
        check_vocabulary(self._base, tokens)
        tokens = tokens.to(next(self._model.parameters()).device)
        return self._model(tokens, **with_cache(self._model, self.cache), **self._options).logits[:, -1]


def write(
    reader: Reader, ids: list[int], sampler: Sampler, ends: set[int], limit: int, answer: Answer
) -> Iterator[int]:
    """The tokens that the model writes behind `ids`, each once the cache holds it.

    Args:
        reader: has the model and the cache.
        ids: the prompt, or what is new of it.
        sampler: chooses the tokens.
        ends: tokens that end the answer; neither read nor given.
        limit: tokens at most.
        answer: is kept up to date.
    """
    logits = reader.read(ids)
    for _ in range(limit):
        begun = time.perf_counter()
        token = sampler(logits)
        if token in ends:
            answer.is_ended = True
            return
        logits = reader.read([token])
        answer.tokens += 1
        answer.seconds += time.perf_counter() - begun
        yield token


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

    Args:
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens; among all when None.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws.
        device: where the logits are.

    Raises:
        SinkscopeError: temperature < 0, top_k < 1, or top_p not above 0 and up to 1.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.temperature = finite_number(temperature, "temperature", 0.0, inclusive=True)
        likeliest = None if top_k is None else whole_number(top_k, "top_k", 1)
        share = finite_number(top_p, "top_p", 0.0)
        if share > 1.0:
            raise SinkscopeError(f"top_p={top_p!r} is no probability above 0 and up to 1: give one, such as top_p=0.9.")
        self._rules = sampling_rules(self.temperature, likeliest, share) if self.temperature else None
        self._generator = torch.Generator(device).manual_seed(whole_number(seed, "seed", 0))

    def __call__(self, logits: Tensor) -> int:
        """The token chosen by logits [1, token of the vocabulary]."""
        if self._rules is None:
            return int(logits.argmax())
        weights = self._rules(logits.float()).softmax(-1)
        return int(torch.multinomial(weights, 1, generator=self._generator))


UNFINISHED = "\ufffd"  # what bytes decode to that are no character yet


class TextPieces:
    """The pieces of one text; joined, they are the decoded text, but for part of a character at its end.

    Args:
        tokenizer: of transformers; its special tokens are left out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # those of the last piece, and those not shown yet
        self._shown = 0

    def add(self, token: int) -> str:
        """The characters that are complete with this token; often one word, sometimes none."""
        self._ids.append(token)
        before, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if len(text) <= len(before) or text.endswith(UNFINISHED):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
