"""What an intervention is: one change to a text, to the attention over it or to the hidden states on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.core.normalisers import Normaliser
from sinkscope.core.policies import Dense, Policy

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
    """One change, beside which its control does as much of something that is not a sink."""

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
