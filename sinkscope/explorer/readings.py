"""What a model makes of a text under one setting."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from sinkscope.explorer.head_maps import HeadMaps
from sinkscope.explorer.setting import Setting


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
    """A text, read under one setting.

    Attributes:
        setting: how.
        maps: where attention went. Under re-computation every query has maps of its own: those of one are here.
        losses: [token] nats, NaN where a token was not scored.
        guesses: the next tokens at each query.
        record: the sink mass and norms, as `sinkscope.measure` gives them.
        note: what has to be said about it; or empty.
    """

    setting: Setting
    maps: HeadMaps
    losses: np.ndarray
    guesses: Guesses
    record: xr.Dataset
    note: str = ""


@dataclass(frozen=True)
class Overview:
    """All heads at once.

    Attributes:
        setting: under which they were seen.
        units: [unit, side, side] bytes of the max-pooled log10 probabilities (see `encoding`).
        scores: by name, [unit]: what heads can be ranked by.
    """

    setting: Setting
    units: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuation:
    """How the model goes on after the text, greedily.

    Attributes:
        setting: under which.
        text: so far.
        done: whether it is as long as it gets.
    """

    setting: Setting
    text: str
    done: bool = False


@dataclass(frozen=True)
class Price:
    """What the setting costs.

    Attributes:
        setting: which.
        kv_bytes: keys and values held behind the text.
        flops: operations for its last token.
    """

    setting: Setting
    kv_bytes: int
    flops: int
