"""Changes of the text: other first tokens, another place to start, one token again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.interventions.intervention import Arm, Intervention, Setting
from sinkscope.streaming.ablation.sink_tokens import line_break_token

TOKENS = ("line breaks", "random")


@dataclass(frozen=True)
class ReplaceTokens(Intervention):
    """Put line breaks or random tokens in the place of the first tokens (Xiao et al. 2023, Table 1).

    The control does it to as many tokens elsewhere before the start of scoring.

    Args:
        by: "line breaks", or "random" tokens of the vocabulary.
        count: how many; as many as there are sinks when None.
        first: whether the first tokens; random places when False.
    """

    by: str = "line breaks"
    count: int | None = None
    first: bool = True
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        if self.by not in TOKENS:
            raise SinkscopeError(f"by={self.by!r} is unknown; give one of {', '.join(TOKENS)}.")

    @property
    def name(self) -> str:
        where = "first" if self.first else "other"
        return f"{where} {'tokens' if self.count is None else self.count} to {self.by}"

    def control(self) -> Intervention | None:
        return replace(self, first=False) if self.first else None

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        if self.by == "line breaks":
            if setting.tokenizer is None:
                raise SinkscopeError(
                    "replacing tokens by line breaks needs a tokenizer to find theirs; pass tokenizer=."
                )
            line_break_token(setting.tokenizer)
        if (self.count or setting.sinks) > setting.start - setting.sinks:
            raise SinkscopeError(
                f"{self.count} tokens do not fit before the start at {setting.start}; give a later one."
            )

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> Intervention:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        return replace(self, vocabulary=embeddings.num_embeddings)

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        count, random = self.count or setting.sinks, setting.random(number)
        places = random.choice(range(setting.sinks, setting.start), count, replace=False)
        drawn = torch.from_numpy(random.integers(self.vocabulary or 1, size=count))
        if self.by == "line breaks":
            drawn = torch.full((count,), line_break_token(setting.tokenizer))
        changed = text.clone()
        changed[torch.arange(count) if self.first else torch.from_numpy(places)] = drawn
        return Arm.of(changed)


@dataclass(frozen=True)
class Shift(Intervention):
    """Start the text some tokens later, so that others are its first ones; the same tokens are scored.

    The control cuts as many tokens out behind the sinks: as much less context, the same beginning.

    Args:
        tokens: how many.
        behind_sinks: whether they are cut out behind the sinks.
    """

    tokens: int = 16
    behind_sinks: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, int) or self.tokens < 1:
            raise SinkscopeError(f"tokens={self.tokens!r} shifts nothing; give a whole number, 1 or more.")

    @property
    def name(self) -> str:
        return f"cut {self.tokens} behind the sinks" if self.behind_sinks else f"start {self.tokens} later"

    def control(self) -> Intervention | None:
        return None if self.behind_sinks else replace(self, behind_sinks=True)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        if self.tokens + setting.sinks >= setting.start:
            raise SinkscopeError(
                f"{self.tokens} tokens cannot be cut before the start at {setting.start}; give a later one."
            )

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        places, kept = torch.arange(len(text)), setting.sinks if self.behind_sinks else 0
        left = torch.cat([places[:kept], places[kept + self.tokens :]])
        return Arm(text[left], left)


@dataclass(frozen=True)
class Repeat(Intervention):
    """A text of one token again and again, in which nothing but the place tells tokens apart.

    What to read from it is the attention, not the loss. The control is the text with its tokens in random order.

    Args:
        token: the id; for each text one of its own, drawn at random, when None.
        shuffled: whether to shuffle the text instead.
    """

    token: int | None = None
    shuffled: bool = False

    @property
    def name(self) -> str:
        return "shuffle all tokens" if self.shuffled else "repeat one token"

    def control(self) -> Intervention | None:
        return None if self.shuffled else replace(self, shuffled=True)

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        random = setting.random(number)
        order = torch.from_numpy(random.permutation(len(text)))
        if self.shuffled:
            return Arm.of(text[order])
        return Arm.of(torch.full_like(text, int(text[order[0]]) if self.token is None else self.token))
