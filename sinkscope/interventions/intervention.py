"""What an intervention is: one change to a text, to the attention over it or to the hidden states on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.core.normalisers import Normaliser
from sinkscope.core.policies import Dense, Policy
from sinkscope.errors import SinkscopeError

Hang = Callable[[nn.Module, ExitStack], None]


@dataclass(frozen=True)
class Setting:
    """What interventions of one run share.

    Attributes:
        start: the first query that notices; tokens after it are scored.
        sinks: how many first tokens count as sinks.
        seed: of all that is drawn at random.
        tokenizer: tells what is a delimiter, or None.
    """

    start: int
    sinks: int
    seed: int
    tokenizer: Any = None

    def random(self, *numbers: int) -> np.random.Generator:
        """A generator of its own for these numbers, the same in every run with this seed."""
        return np.random.default_rng([self.seed, *numbers])

    def others(self, number: int, count: int) -> list[int]:
        """Places of `count` random tokens of the `number`-th text, behind the sinks and before the start."""
        drawn = self.random(number).choice(range(max(self.sinks, count), self.start), count, replace=False)
        return sorted(int(place) for place in drawn)

    def check_room(self, name: str, count: int) -> None:
        """Raise SinkscopeError when there are not more than `count` tokens behind the sinks and before the start."""
        first = max(self.sinks, count)
        if count >= self.start - first:
            raise SinkscopeError(
                f"`{name}` takes {count} of the {self.start} tokens that query {self.start} sees before it, and its "
                f"control as many behind the first {first}, which leaves none; give a later start, or fewer."
            )


@dataclass(frozen=True)
class Arm:
    """One text as it is run under one intervention.

    Attributes:
        tokens: [token] ids.
        places: [token] where each stood in the text as it was; -1 for one that did not.
        policy, normaliser: the slots of attention.
        hang: puts hooks on the model and their removal on the stack; None where there are none.
    """

    tokens: Tensor
    places: Tensor
    policy: Policy = field(default_factory=Dense)
    normaliser: Normaliser | None = None
    hang: Hang | None = None

    @classmethod
    def of(cls, tokens: Tensor, **slots: Any) -> Arm:
        """A text whose tokens all stand where they stood."""
        return cls(tokens, torch.arange(len(tokens)), **slots)


class Intervention(ABC):
    """One change, beside which its control does as much of something that is not a sink.

    Attributes:
        same_tokens: whether the tokens scored are those of the text as it was, so that losses can be compared.
    """

    same_tokens: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """As tables and figures show it."""

    @abstractmethod
    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        """The `number`-th text [token] under this intervention."""

    def control(self) -> Intervention | None:
        """What to set beside it; None where it is a control itself."""
        return None

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:  # noqa: B027 - few need it
        """Raise SinkscopeError when it cannot be carried out, before anything runs."""

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> Intervention:
        """The intervention with what it has to know of the model and all texts."""
        return self


@dataclass(frozen=True)
class Nothing(Intervention):
    """The baseline."""

    @property
    def name(self) -> str:
        return "nothing"

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        return Arm.of(text)


def check_numbers(name: str, numbers: Sequence[int] | None) -> None:
    """Raise SinkscopeError for what is not a list of layers, heads or places; None stands for all."""
    given: Any = numbers
    if given is None:
        return
    whole = not isinstance(given, (int, str)) and all(isinstance(each, int) and each >= 0 for each in given)
    if not whole or len(set(given)) < max(1, len(given)):
        raise SinkscopeError(f"{name}={given!r} says not which; give different whole numbers, such as {name}=[0, 5].")


def check_among(name: str, kind: str, numbers: Sequence[int] | None, known: Sequence[int] | None) -> None:
    """Raise SinkscopeError when an intervention names layers or heads that a model does not have.

    Args:
        name: of the intervention.
        kind: "layer" or "head".
        numbers: those it names; None for all.
        known: those there are; None where that is not known.
    """
    for number in numbers or ():
        if known is not None and number not in known:
            raise SinkscopeError(
                f"{kind} {number} of `{name}` is out of range: the model has {kind}s {min(known)} to {max(known)}."
            )
