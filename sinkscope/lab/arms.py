"""Arms of an experiment: what stands in the place of softmax."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.errors import SinkscopeError
from sinkscope.normalisers import ClippedSoftmax, Normaliser, ReLU, Sigmoid, Softmax, Softmax1


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: what tables and figures call it.
        normaliser: how scores become weights.
        has_sink_logit: whether one logit per head is trained with the rest, as the normaliser `LearnedSink`.
        has_sink_token: whether a learned token stands in front of everything.
    """

    name: str
    normaliser: Normaliser = Softmax()  # noqa: RUF009 - frozen
    has_sink_logit: bool = False
    has_sink_token: bool = False


ARMS = (
    Arm("softmax"),
    Arm("softmax1", Softmax1()),
    Arm("learned sink", has_sink_logit=True),
    Arm("clipped softmax", ClippedSoftmax(gamma=-0.03, zeta=1.0)),  # the choice of Bondarenko et al. 2023
    Arm("sigmoid", Sigmoid()),
    Arm("relu", ReLU()),
    Arm("sink token", has_sink_token=True),
)
NAMES = tuple(arm.name for arm in ARMS)


def arm_coordinates(arms: Sequence[Arm]) -> dict[str, Any]:
    """What a record says of its arms beside their names: the class of the normaliser, and what is trained with it."""
    return {
        "arm": [arm.name for arm in arms],
        "normaliser_kind": ("arm", [type(arm.normaliser).__name__ for arm in arms]),
        "has_sink_logit": ("arm", [int(arm.has_sink_logit) for arm in arms]),
        "has_sink_token": ("arm", [int(arm.has_sink_token) for arm in arms]),
    }


def arms_of(given: str | Arm | Iterable[str | Arm]) -> list[Arm]:
    """The arms that are named, and those given as they are; each once.

    Raises:
        SinkscopeError: an unknown name, no arm at all, two that share a name, or one whose normaliser is none.
    """
    known = dict(zip(NAMES, ARMS, strict=True))
    asked = [given] if isinstance(given, (str, Arm)) else list(given)
    unknown = [each for each in asked if not isinstance(each, Arm) and each not in known]
    if unknown:
        raise SinkscopeError(f"{unknown[0]!r} is no arm; give any of {', '.join(NAMES)}.")
    arms = list(dict.fromkeys(each if isinstance(each, Arm) else known[each] for each in asked))
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise SinkscopeError("no arm was given, or two of one name; give one or more, each with a name of its own.")
    for arm in arms:
        if not isinstance(arm.normaliser, Normaliser):
            raise SinkscopeError(
                f"the normaliser of the arm {arm.name!r} is {arm.normaliser!r}; give an instance of a class of "
                "normalisers, such as sinkscope.Softmax1()."
            )
    return arms
