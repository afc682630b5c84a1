"""What stands in the place of the first tokens of a text, which are kept as sinks.

Is it what the first tokens say that makes them sinks, or that they come first? Table 1 of Xiao et al. (2023) puts four
line breaks in the place of the first four tokens, and perplexity hardly changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError

KINDS = ("first", "line breaks", "random")


class SinkTokens(ABC):
    """One kind of tokens to put first."""

    def put(self, texts: Sequence[Tensor], count: int) -> list[Tensor]:
        """Copies of the texts [token] with their first `count` tokens, BOS included, replaced by others."""
        return [torch.cat([self.tokens(text, row, count), text[count:]]) for row, text in enumerate(texts)]

    @abstractmethod
    def tokens(self, text: Tensor, row: int, count: int) -> Tensor:
        """The ids [count] for the front of one text, the `row`-th; those for a smaller count are the first of them."""


@dataclass(frozen=True)
class FirstTokens(SinkTokens):
    """The real first tokens: texts stay as they are."""

    def tokens(self, text: Tensor, row: int, count: int) -> Tensor:
        return text[:count]


@dataclass(frozen=True)
class LineBreaks(SinkTokens):
    """One token again and again: the line break."""

    token: int

    def tokens(self, text: Tensor, row: int, count: int) -> Tensor:
        return text.new_full((count,), self.token)


@dataclass(frozen=True)
class RandomTokens(SinkTokens):
    """Tokens drawn evenly from a vocabulary, others for each text, the same for every cell with the same seed."""

    vocabulary: int
    seed: int

    def tokens(self, text: Tensor, row: int, count: int) -> Tensor:
        drawn = np.random.default_rng([self.seed, row]).integers(self.vocabulary, size=count)
        return torch.from_numpy(drawn).to(text)


def line_break_token(tokenizer: Any) -> int:
    """The id of the token for a line break.

    A blank that SentencePiece tokenizers put before every text, as Llama 2's does, is not counted.

    Raises:
        SinkscopeError: no tokenizer, or one that has no single token for a line break.
    """
    if tokenizer is None:
        raise SinkscopeError('kinds="line breaks" needs a tokenizer to find their token; pass tokenizer=.')
    ids = list(tokenizer.encode("\n", add_special_tokens=False))
    if len(ids) > 1 and tokenizer.decode(ids[-1:]) == "\n":
        ids = ids[-1:]
    if len(ids) != 1:
        raise SinkscopeError(
            f"this tokenizer makes {len(ids)} tokens of a line break, and a sink is one; leave "
            '"line breaks" out of kinds.'
        )
    return int(ids[0])
