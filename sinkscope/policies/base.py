"""What a policy is: which keys a query may see, and at what distance.

Three kinds are open to classes of one's own. Each has one method that carries the idea, and everything else a default:

    StaticPolicy   ``sees(query, key)``: a function of places in the text, exact in blocks of any size
    ScoredPolicy   ``score(held)``: the keys with the highest scores are kept; scores follow from the attention itself
    Policy         ``bind(layer)``: anything else, as evictions of the engine's own

A policy binds itself to each layer of a model: `bind` gives the evictions that the layer carries out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from sinkscope.attention.eviction import Eviction
from sinkscope.attention.placement import Placed, kind_of
from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import key_value_heads, query_heads
from sinkscope.models.rotary import Rotation, find_rotations

POSITIONS = ("cache", "original")
VALUES = ("kept", "zeroed", "mean", "added")


class BoundLayer:
    """One attention layer, as a policy is told of it when it binds itself."""

    def __init__(self, model: nn.Module, index: int, number: int) -> None:
        self.index = index  # among the attention layers, from 0
        self.number = number  # among the model's layers
        self.heads, self.kv_heads = query_heads(model) or 0, key_value_heads(model) or 0
        self._model = model

    @property
    def rotation(self) -> Rotation | None:
        """The layer's rotary geometry; None where keys do not depend on position, SinkscopeError for absolute ones."""
        return find_rotations(self._model)[self.index]


class Kept(NamedTuple):
    """The tokens that a cache has to hold: the first ones of the text, and the last ones."""

    first: int
    last: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Policy(Placed):
    """Which keys a query may see, in all or in chosen layers and heads; the rest of the model is dense.

    Args:
        label: the name it has in figures and records; one that tells its numbers when None.
    """

    label: str | None = None

    recomputed = False  # whether keys and values are rebuilt from the tokens kept, for every new token
    remembers = False  # whether which keys a query sees follows from the attention of earlier ones

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        """How one attention layer carries it out: evictions in different heads; none for dense attention."""
        raise SinkscopeError(
            f"{type(self).__name__} is a policy that does not say which keys a query sees; derive it from "
            "sinkscope.StaticPolicy and give it `sees`, or from sinkscope.ScoredPolicy and give it `score`."
        )

    @property
    def kept(self) -> Kept | None:
        """The tokens that a cache has to hold for it; None where it may need any."""
        return None

    @property
    def cache_size(self) -> int | None:
        """Tokens kept between two steps at most; None when all are."""
        return None if self.kept is None else sum(self.kept)

    @property
    def is_dense(self) -> bool:
        """Whether it leaves attention as it is."""
        return False

    @property
    def is_partial(self) -> bool:
        """Whether some layers or heads stay dense."""
        return self.layers is not None or self.heads is not None

    @property
    def is_plain(self) -> bool:
        """Whether keeping tokens, or rebuilding them, is all it does: what any cache can, on any model."""
        return False

    def check(self) -> None:
        """Raise SinkscopeError when the class redefines a part of another one that belongs together with the rest."""

    @property
    def coordinates(self) -> dict[str, str | int | float]:
        """What a record keeps of it beside its name, so that whoever reads the record decides by data.

        policy_kind        name of its class, with its module where that is none of this package
        policy_settings    every field, as JSON; what JSON cannot hold as its repr
        cache_size, sinks  tokens; a cache_size of -1 has no bound
        recomputed         1 where keys and values are rebuilt for every new token, else 0
        sink_values        "kept", "zeroed", "mean" or "added", as in `SinkWindow`
        sink_bias          added to the logits of the sinks, or of the chosen keys
        positions          "cache" or "original"
        placement          the layers and heads it acts in, in words; empty for all
        """
        return {
            "policy_kind": kind_of(type(self)),
            "policy_settings": json.dumps(self.settings, default=repr, sort_keys=True),
            "cache_size": -1 if self.cache_size is None else self.cache_size,
            "sinks": 0 if self.kept is None else self.kept.first,
            "recomputed": int(self.recomputed),
            "sink_values": "kept",
            "sink_bias": 0.0,
            "positions": "cache" if self.recomputed or self.kept else "original",
            "placement": self.place,
        }

    @property
    def name(self) -> str:
        """A short name, as figures and records show it."""
        return ", ".join(filter(None, [self.description, self.place])) if self.label is None else str(self.label)

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        own = {name: value for name, value in self.settings.items() if name not in ("layers", "heads", "label")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in own.items())})"


def check_count(policy: Policy, name: str, least: int) -> None:
    """Raise SinkscopeError when a field is no whole number from `least` on."""
    value = getattr(policy, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SinkscopeError(
            f"{type(policy).__name__}({name}={value!r}) cannot be kept; give a whole {name} >= {least}."
        )
