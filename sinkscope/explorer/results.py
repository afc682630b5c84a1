"""What a model makes of a text under one configuration, and how that compares with the model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np
import xarray as xr

from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.head_maps import HeadMaps


class Change(StrEnum):
    """What has changed, as a controller tells its listener.

    The first four are also the kinds of results, each named like the attribute of `Results` that holds it.
    """

    READING = "reading"
    OVERVIEW = "overview"
    PRICE = "price"
    CONTINUATION = "continuation"
    CONFIGURATION = "configuration"
    BUSY = "busy"
    PROBLEM = "problem"
    UNIT = "unit"
    QUERY = "query"
    MAP_OPTIONS = "map options"


@dataclass(frozen=True)
class Guesses:
    """The likeliest next tokens [query, rank] at each query, likeliest first."""

    ids: np.ndarray  # -1 where a query was not scored
    probabilities: np.ndarray


@dataclass(frozen=True)
class Result:
    """What was found under one configuration."""

    kind: ClassVar[Change]
    configuration: Configuration


@dataclass(frozen=True)
class Reading(Result):
    """A text that was read."""

    kind = Change.READING
    maps: HeadMaps  # under re-computation every query has maps of its own: those of one are here
    losses: np.ndarray  # [token] nats, NaN where a token was not scored
    guesses: Guesses
    record: xr.Dataset  # sink mass and norms, as `sinkscope.measure` gives them
    note: str = ""  # what has to be said about it


@dataclass(frozen=True)
class Overview(Result):
    """All heads at once."""

    kind = Change.OVERVIEW
    units: np.ndarray  # [unit, side, side] bytes of the max-pooled log10 probabilities (see `pixels`)
    scores: dict[str, np.ndarray]  # by name, [unit]: what heads can be ranked by


@dataclass(frozen=True)
class Price(Result):
    """What the configuration costs."""

    kind = Change.PRICE
    kv_bytes: int  # of keys and values held behind the text
    flops: int  # operations for its last token
    unknown: str = ""  # why neither can be told; empty where both are


@dataclass(frozen=True)
class Continuation(Result):
    """The greedy continuation of the text."""

    kind = Change.CONTINUATION
    text: str  # so far
    done: bool = False  # whether it is as long as it gets


@dataclass
class Results:
    """All there is of one configuration so far; None for what is not there yet."""

    reading: Reading | None = None
    overview: Overview | None = None
    price: Price | None = None
    continuation: Continuation | None = None

    def take(self, result: Result) -> None:
        """Keep a result in the place of an earlier one of its kind."""
        setattr(self, result.kind.value, result)


@dataclass(frozen=True)
class Loss:
    """The perplexities of two readings over the same tokens."""

    dense: float
    changed: float
    tokens: int  # how many were scored under both
    first: int  # the place of the first of them


def loss_of(dense: Reading, changed: Reading) -> Loss | None:
    """Perplexities over the tokens that are `compared`; None where there are none."""
    tokens = compared(dense, changed)
    if not len(tokens):
        return None
    before, after = (float(np.exp(each.losses[tokens].mean(dtype=np.float64))) for each in (dense, changed))
    return Loss(before, after, len(tokens), int(tokens[0]))


def compared(dense: Reading, changed: Reading) -> np.ndarray:
    """The tokens that the configuration acts on and both readings scored: [token], rising."""
    both = np.isfinite(dense.losses) & np.isfinite(changed.losses)
    both[: changed.configuration.first_affected(len(both)) + 1] = False
    return np.flatnonzero(both)


def guesses_at(
    query: int, dense: Reading, changed: Reading, count: int
) -> list[tuple[int, float | None, float | None]]:
    """The `count` likeliest next tokens at a query; empty where one of the readings has none there.

    Returns:
        Token id, its probability in the dense reading, and in the changed one; None stands for a probability below
        those that were kept.
    """
    both = [each.guesses for each in (dense, changed)]
    if any(guesses.ids[query, 0] < 0 for guesses in both):
        return []
    before, after = (
        dict(zip(each.ids[query].tolist(), each.probabilities[query].tolist(), strict=True)) for each in both
    )
    best = {*list(before)[:count], *list(after)[:count]}
    order = sorted(best, key=lambda token: -max(before.get(token, 0.0), after.get(token, 0.0)))
    return [(token, before.get(token), after.get(token)) for token in order[:count]]
