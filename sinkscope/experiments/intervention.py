"""What an intervention is: one change to a text, to attention over it or to the hidden states on the way; and the
interventions that change the text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import one_of, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import input_embeddings
from sinkscope.models.facts import find_anatomy
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy
from sinkscope.scope.forward import check_vocabulary
from sinkscope.tokens import TokenTexts, encode

TOKENS = ("line breaks", "random")
DRAWS = 20
"""Of what is drawn at random, in each text, where no number is asked for."""


@dataclass(frozen=True)
class Conditions:
    """What interventions of one run share.

    Attributes:
        start: the first query that notices.
        sinks: how many first tokens count as sinks.
        seed: of all that is drawn at random.
        tokenizer: tells what is a delimiter.
        draws: how often what is drawn at random is drawn in each text; 20 times, or as often as it can be, when None.
        draw: the number of the draw that is run now.
        attention: gives the attention that each key of the text of a number receives from the queries from the start
            on, when nothing is done to it: `received` and `distance_mass` as the probes make them, over these queries.
    """

    start: int = 64
    sinks: int = 4
    seed: int = 0
    tokenizer: Any = None
    draws: int | None = None
    draw: int = 0
    attention: Callable[[int], xr.Dataset] | None = None

    def __post_init__(self) -> None:
        for name, least in (("start", 2), ("sinks", 1), ("seed", 0), ("draws", 1)):
            if name != "draws" or self.draws is not None:
                object.__setattr__(self, name, whole_number(getattr(self, name), name, least))

    def random(self, *numbers: int) -> np.random.Generator:
        """A generator of its own for these numbers and this draw, the same in every run with this seed."""
        own = (self.draw,) if self.draw else ()
        return np.random.default_rng(np.random.SeedSequence([self.seed, *numbers], spawn_key=own))

    def others(self, number: int, count: int) -> list[int]:
        """Places of `count` random tokens of the `number`-th text, behind the sinks and before the start."""
        drawn = self.random(number).choice(range(max(self.sinks, count), self.start), count, replace=False)
        return sorted(drawn.tolist())

    def draws_among(self, name: str, count: int, others: int | None = None) -> int:
        """How often `count` of so many others are drawn: by default of those that `others` chooses from.

        Raises SinkscopeError when they cannot be drawn in as many different ways.
        """
        ways = comb(self.start - max(self.sinks, count) if others is None else others, count)
        if self.draws is None:
            return min(DRAWS, ways)
        if self.draws > ways:
            raise SinkscopeError(
                f"draws={self.draws} are more than there are: what `{name}` acts on can be drawn in {ways} ways; give "
                f"draws={ways} or fewer, or a later start."
            )
        return self.draws

    def check_room(self, name: str, count: int) -> None:
        """Raise SinkscopeError when there are not more than `count` tokens behind the sinks and before the start."""
        first = max(self.sinks, count)
        if count >= self.start - first:
            raise SinkscopeError(
                f"`{name}` takes {count} of the {self.start} tokens that query {self.start} sees before it, and its "
                f"control as many behind the first {first}, which leaves none; give a later start, or fewer."
            )


@dataclass(frozen=True)
class Trial:
    """One text as it is run under one intervention.

    >>> sinkscope.Trial(ids[0], policy=sinkscope.Window(8)).policy
    Window(size=8)

    Attributes:
        tokens: [token] ids.
        places: [token] where each stood in the text as it was, -1 for one that did not; None where none has moved.
        policy, normaliser: the slots of attention; the dense policy and the model's own normaliser when None.
        hooks: puts hooks on the model and their removal on the stack; None where there are none.
    """

    tokens: Tensor
    places: Tensor | None = None
    policy: Policy | None = None
    normaliser: Normaliser | None = None
    hooks: Callable[[nn.Module, ExitStack], None] | None = None


class Intervention(ABC):
    """One change to each text as it is run; a subclass says which in `apply`, and need say no more.

    Beside it stands its `control`, which does as much of something that is not a sink. The model as it is, "nothing",
    is run with every set of interventions. What is drawn at random (`conditions.random`) is drawn `draws` times.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class LastTokens(sinkscope.Intervention):
    ...     '''Attention over the last tokens alone.'''
    ...
    ...     window: int = 16
    ...
    ...     def apply(self, text, number, conditions):
    ...         return sinkscope.Trial(text, policy=sinkscope.Window(self.window))
    >>> table = sinkscope.intervene(model, ids, [LastTokens(8), LastTokens(32)], start=20)
    >>> table[["intervention", "role"]].values.tolist()
    [['nothing', 'baseline'], ['LastTokens(window=8)', 'effect'], ['LastTokens(window=32)', 'effect']]
    """

    @abstractmethod
    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        """The `number`-th text [token] under this intervention."""

    @property
    def name(self) -> str:
        """As tables and figures show it: the repr of a dataclass, or the name of the class."""
        return type(self).__name__ if type(self).__repr__ is object.__repr__ else repr(self)

    def control(self) -> Intervention | None:
        """What to set beside it; None where it is a control itself."""
        return None

    def draws(self, conditions: Conditions) -> int:
        """How many times it is run over each text, as draws 0, 1 .. of the conditions; once, where nothing is drawn."""
        return 1

    def check(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:  # noqa: B027
        """Raise SinkscopeError when it cannot be carried out, before anything runs."""

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> Intervention:
        """The intervention with what it has to know of the model and all texts."""
        return self


@dataclass(frozen=True)
class Nothing(Intervention):
    name = "nothing"  # the baseline

    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        return Trial(text)


@dataclass(frozen=True)
class ReplaceTokens(Intervention):
    """Put line breaks or random tokens in the place of the first tokens (Xiao et al. 2023, Table 1).

    The control does it to as many tokens elsewhere before the start of scoring.

    >>> table = sinkscope.intervene(model, ids, [sinkscope.ReplaceTokens("random", 2)], start=16, resamples=50)
    >>> table.role.tolist()
    ['baseline', 'effect', 'control']

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
        one_of(self.by, "by", TOKENS)
        if self.count is not None:
            whole_number(self.count, "count", 1)

    @property
    def name(self) -> str:
        where, by = "first" if self.first else "other", "random ones" if self.by == "random" else self.by
        return f"{where} {'' if self.count is None else f'{self.count} '}tokens to {by}"

    def control(self) -> Intervention | None:
        return replace(self, first=False) if self.first else None

    def draws(self, conditions: Conditions) -> int:
        """Places of the control, and random tokens of either: the same ones in one draw of both."""
        is_fixed = self.first and self.by != "random"
        return 1 if is_fixed else conditions.draws_among(self.name, self.count or conditions.sinks)

    def check(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:
        if self.by == "line breaks":
            if conditions.tokenizer is None:
                raise SinkscopeError(
                    "replacing tokens by line breaks needs a tokenizer to find theirs; pass tokenizer=."
                )
            try:
                line_break_token(conditions.tokenizer)
            except SinkscopeError as problem:
                reason = 'this tokenizer has no single token for a line break; replace tokens by "random" ones.'
                raise SinkscopeError(reason) from problem
        conditions.check_room(self.name, self.count or conditions.sinks)
        self.draws(conditions)

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> Intervention:
        return replace(self, vocabulary=input_embeddings(model).num_embeddings)

    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        count, changed = self.count or conditions.sinks, text.clone()
        places = list(range(count)) if self.first else conditions.others(number, count)
        if self.by == "line breaks":
            changed[places] = line_break_token(conditions.tokenizer)
        else:
            drawn = conditions.random(number, 1).integers(self.vocabulary or 1, size=count)
            changed[places] = torch.from_numpy(drawn).to(text)
        return Trial(changed)


@dataclass(frozen=True)
class Shift(Intervention):
    """Start the text some tokens later, so that others are its first ones; the same tokens are scored.

    The control cuts as many tokens out behind the sinks: as much less context, the same beginning.

    >>> sinkscope.intervene(model, ids, [sinkscope.Shift(4)], start=16, resamples=50).role.tolist()
    ['baseline', 'effect', 'control']

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

    def check(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:
        if self.tokens + conditions.sinks >= conditions.start:
            raise SinkscopeError(
                f"`{self.name}` leaves nothing behind the sinks and before the start at {conditions.start}; give a "
                "later start, or cut fewer tokens."
            )

    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        places, kept = torch.arange(len(text)), conditions.sinks if self.behind_sinks else 0
        left = torch.cat([places[:kept], places[kept + self.tokens :]])
        return Trial(text[left], left)


@dataclass(frozen=True)
class Repeat(Intervention):
    """A text of one token again and again, in which nothing but the place tells tokens apart.

    Its tokens are not those of the text, so what to read from it is the attention, not the loss. The control is the
    text with its tokens in random order.

    >>> sinkscope.intervene(model, ids, [sinkscope.Repeat(5)], start=16, resamples=50).role.tolist()
    ['baseline', 'effect', 'control']

    Args:
        token: the id; for each text one of its own, drawn at random, when None.
        shuffled: whether to shuffle the text instead.
    """

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

    def check(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:
        if self.token is not None:
            check_vocabulary(find_anatomy(model).base, torch.tensor([self.token]))

    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        shuffled = text[torch.from_numpy(conditions.random(number).permutation(len(text)))]
        if self.shuffled:
            return Trial(shuffled)
        return Trial(torch.full_like(text, int(shuffled[0]) if self.token is None else self.token))


def line_break_token(tokenizer: Any) -> int:
    """The id of the token for a line break; SinkscopeError where there is no single one, or no tokenizer."""
    if tokenizer is None:
        raise SinkscopeError('kinds="line breaks" needs a tokenizer to find their token; pass tokenizer=.')
    ids = encode(tokenizer, "\n")[-1:]  # without the blank that SentencePiece puts before every text, as Llama 2's does
    if not ids or TokenTexts(tokenizer).of(ids[0]) != "\n":
        raise SinkscopeError(
            'this tokenizer has no token that is a line break and nothing else; leave "line breaks" out of kinds.'
        )
    return ids[0]
