"""What a model makes of a text under one configuration, and how that compares with the model as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import numpy as np
import xarray as xr

from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.head_maps import HeadMaps


class Change(StrEnum):
    """The kinds of message that a controller sends to its listener: what has changed.

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
    """The likeliest next tokens at each query, likeliest first.

    Attributes:
        ids: [query, rank], -1 where a query was not scored.
        probabilities: [query, rank].
    """

    ids: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Reading:
    """A text, read under one configuration.

    Attributes:
        configuration: which.
        maps: where attention went. Under re-computation every query has maps of its own: those of one are here.
        losses: [token] nats, NaN where a token was not scored.
        guesses: the next tokens at each query.
        record: the sink mass and norms, as `sinkscope.measure` gives them.
        note: what has to be said about it; or empty.
    """

    kind: ClassVar[Change] = Change.READING
    configuration: Configuration
    maps: HeadMaps
    losses: np.ndarray
    guesses: Guesses
    record: xr.Dataset
    note: str = ""


@dataclass(frozen=True)
class Overview:
    """All heads at once.

    Attributes:
        configuration: under which they were seen.
        units: [unit, side, side] bytes of the max-pooled log10 probabilities (see `pixels`).
        scores: by name, [unit]: what heads can be ranked by.
    """

    kind: ClassVar[Change] = Change.OVERVIEW
    configuration: Configuration
    units: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Price:
    """What the configuration costs.

    Attributes:
        configuration: which.
        kv_bytes: keys and values held behind the text.
        flops: operations for its last token.
        unknown: why neither can be told; empty where both are.
    """

    kind: ClassVar[Change] = Change.PRICE
    configuration: Configuration
    kv_bytes: int
    flops: int
    unknown: str = ""


@dataclass(frozen=True)
class Continuation:
    """The greedy continuation of the text.

    Attributes:
        configuration: under which.
        text: so far.
        done: whether it is as long as it gets.
    """

    kind: ClassVar[Change] = Change.CONTINUATION
    configuration: Configuration
    text: str
    done: bool = False


Result = Reading | Overview | Price | Continuation


@dataclass
class Results:
    """All there is of one configuration so far.

    Attributes:
        reading, overview, price, continuation: None until they are there.
    """

    reading: Reading | None = None
    overview: Overview | None = None
    price: Price | None = None
    continuation: Continuation | None = None

    def take(self, result: Result) -> None:
        """Keep a result in the place of an earlier one of its kind."""
        setattr(self, result.kind.value, result)


# --- beside the model as it is ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """How two readings compare over the same tokens.

    Attributes:
        dense, changed: perplexities.
        tokens: how many tokens were scored under both.
        first: the first of them.
    """

    dense: float
    changed: float
    tokens: int
    first: int


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
    """The likeliest next tokens at a query.

    Args:
        query: the token that predicts.
        dense: the reading of the model as it is.
        changed: the one under a configuration.
        count: how many.

    Returns:
        Token id, its probability under the model as it is, and under the configuration; None stands for a probability
        below those that were kept. Empty where one of them was not read at this query.
    """
    kept: list[dict[int, float]] = []
    for reading in (dense, changed):
        guesses = reading.guesses
        if guesses.ids[query, 0] < 0:
            return []
        kept.append(dict(zip(guesses.ids[query].tolist(), guesses.probabilities[query].tolist(), strict=True)))
    before, after = kept
    best = {*list(before)[:count], *list(after)[:count]}
    order = sorted(best, key=lambda token: -max(before.get(token, 0.0), after.get(token, 0.0)))
    return [(token, before.get(token), after.get(token)) for token in order[:count]]
