"""Changes of the text: other first tokens, another place to start, one token again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinkscope.arguments import whole_number
from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.forward import check_vocabulary
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
        if self.count is not None:
            whole_number(self.count, "count", 1)

    @property
    def name(self) -> str:
        where, by = "first" if self.first else "other", "random ones" if self.by == "random" else self.by
        return f"{where} {'' if self.count is None else f'{self.count} '}tokens to {by}"

    def control(self) -> Intervention | None:
        return replace(self, first=False) if self.first else None

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        if self.by == "line breaks":
            _line_break(setting.tokenizer)
        setting.check_room(self.name, self.count or setting.sinks)

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> Intervention:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        return replace(self, vocabulary=embeddings.num_embeddings)

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        count = self.count or setting.sinks
        drawn = torch.from_numpy(setting.random(number, 1).integers(self.vocabulary or 1, size=count))
        if self.by == "line breaks":
            drawn = torch.full((count,), _line_break(setting.tokenizer))
        changed = text.clone()
        changed[list(range(count)) if self.first else setting.others(number, count)] = drawn.to(text)
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
        whole_number(self.tokens, "tokens", 1)

    @property
    def name(self) -> str:
        return f"cut {self.tokens} behind the sinks" if self.behind_sinks else f"start {self.tokens} later"

    def control(self) -> Intervention | None:
        return None if self.behind_sinks else replace(self, behind_sinks=True)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        if self.tokens + setting.sinks >= setting.start:
            raise SinkscopeError(
                f"`{self.name}` leaves nothing behind the sinks and before the start at {setting.start}; give a later "
                "start, or cut fewer tokens."
            )

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        places, kept = torch.arange(len(text)), setting.sinks if self.behind_sinks else 0
        left = torch.cat([places[:kept], places[kept + self.tokens :]])
        return Arm(text[left], left)


@dataclass(frozen=True)
class Repeat(Intervention):
    """A text of one token again and again, in which nothing but the place tells tokens apart.

    Its tokens are not those of the text, so what to read from it is the attention, not the loss. The control is the
    text with its tokens in random order.

    Args:
        token: the id; for each text one of its own, drawn at random, when None.
        shuffled: whether to shuffle the text instead.
    """

    same_tokens: ClassVar[bool] = False

    token: int | None = None
    shuffled: bool = False

    def __post_init__(self) -> None:
        if self.token is not None:
            whole_number(self.token, "token", 0)

    @property
    def name(self) -> str:
        if self.shuffled:
            return "shuffle all tokens"
        return "repeat one token" if self.token is None else f"repeat token {self.token}"

    def control(self) -> Intervention | None:
        return None if self.shuffled else Repeat(shuffled=True)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        if self.token is not None:
            check_vocabulary(find_anatomy(model).base, torch.tensor([self.token]))

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        order = torch.from_numpy(setting.random(number).permutation(len(text)))
        if self.shuffled:
            return Arm.of(text[order])
        return Arm.of(torch.full_like(text, int(text[order[0]]) if self.token is None else self.token))


def _line_break(tokenizer: Any) -> int:
    """The token of a line break, or SinkscopeError."""
    if tokenizer is None:
        raise SinkscopeError("replacing tokens by line breaks needs a tokenizer to find theirs; pass tokenizer=.")
    try:
        return line_break_token(tokenizer)
    except SinkscopeError as problem:
        raise SinkscopeError(
            'this tokenizer has no single token for a line break; replace tokens by "random" ones.'
        ) from problem
