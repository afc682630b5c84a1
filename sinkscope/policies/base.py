"""What a policy is: which keys a query may see, and at what distance.

Three kinds are open to classes of one's own. Each has one method that carries the idea, and everything else a default:

    StaticPolicy   ``sees(query, key)``: a function of places in the text, exact in blocks of any size
    ScoredPolicy   ``score(held)``: the keys with the highest scores are kept; scores follow from the attention itself
    Policy         ``bind(layer)``: anything else, as evictions of the engine's own

A policy binds itself to each layer of a model: `bind` gives the evictions that the layer carries out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sinkscope.arguments import in_characters
from sinkscope.attention.eviction import Eviction, WindowEviction
from sinkscope.attention.placement import Placed, is_built_in, kind_of, owner, passed_over
from sinkscope.attention.scored import ScoredEviction
from sinkscope.attention.trials import try_eviction
from sinkscope.errors import SinkscopeError, safe_repr, shown
from sinkscope.hf.models import key_value_heads, query_heads
from sinkscope.models.cached import find_layout
from sinkscope.models.requirements import check_streamable
from sinkscope.models.rotary import Rotation, find_rotations

POSITIONS = ("cache", "original")
VALUES = ("kept", "zeroed", "mean", "added", "drawn", "long", "turned")
IDEAS = ("bind", "sees", "score")
LARGEST_BIAS = 1e37  # beside which scores are still finite in float32


class Geometry:
    """What the layers of one model have of rotary geometry, looked for once while a policy binds itself to them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @cached_property
    def layers(self) -> int:
        return len(find_layout(self._model).reads)

    @cached_property
    def rotations(self) -> list[Rotation | None]:
        return find_rotations(self._model)


class BoundLayer:
    """One attention layer, as a policy is told of it when it binds itself."""

    def __init__(self, model: nn.Module, index: int, number: int, geometry: Geometry | None = None) -> None:
        self.index = index  # among the attention layers, from 0
        self.number = number  # among the model's layers
        self.heads, self.kv_heads = query_heads(model) or 0, key_value_heads(model) or 0
        self._model, self._geometry = model, geometry or Geometry(model)

    @property
    def rotation(self) -> Rotation | None:
        """The layer's rotary geometry; None where keys do not depend on position, SinkscopeError for absolute ones."""
        if self.index >= self._geometry.layers:  # it cannot be told what the cache holds
            check_streamable(self._model)
        return self._geometry.rotations[self.index]


class Kept(NamedTuple):
    """The tokens that a cache has to hold: the first ones of the text, and the last ones."""

    first: int
    last: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Policy(Placed):
    """Which keys a query may see, in all or in chosen layers and heads; the rest of the model is dense.

    >>> isinstance(sinkscope.Window(8, layers=[1]), sinkscope.Policy), sinkscope.Window(8).name
    (True, 'window 8')

    Args:
        label: the name it has in figures and records; one that tells its numbers when None.
    """

    label: str | None = None

    recomputed = False  # whether keys and values are rebuilt from the tokens kept, for every new token
    remembers = False  # whether which keys a query sees follows from the attention of earlier ones
    _asked: ClassVar[tuple[str, ...]] = IDEAS  # the methods that say what it does

    def bind(self, layer: BoundLayer) -> tuple[Eviction, ...]:
        """How one attention layer carries it out: evictions in different heads; none for dense attention."""
        raise SinkscopeError(
            f"{type(self).__name__} is a policy that does not say which keys a query sees; derive it from "
            "sinkscope.StaticPolicy and give it `sees`, or from sinkscope.ScoredPolicy and give it `score`.",
            page="A policy, a normaliser or a probe of my own",
        )

    def check_places(self, tokens: int) -> None:
        """Raise SinkscopeError where it names places beyond a text of so many tokens."""

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
        """Raise SinkscopeError when nobody asks a part of it, or a setting cannot be; every run calls it first."""
        kind, name = type(self), type(self).__name__
        checks = next((cls for cls in kind.__mro__ if is_built_in(cls) and "__post_init__" in vars(cls)), None)
        if checks is not None and not is_built_in(kind):
            vars(checks)["__post_init__"](self)  # an `__init__` or `__post_init__` of its own may have left it out
        kinds = [cls.__name__ for cls in kind.__mro__ if is_built_in(cls) and Policy in cls.__bases__]
        if len(kinds) > 1:
            raise SinkscopeError(
                f"{name} is a {' and a '.join(kinds)} at once, and only one of them can say which keys a query sees; "
                "derive it from one."
            )
        is_idle = self.is_dense and not is_built_in(owner(kind, "is_dense"))
        reason = "is recomputed" if self.recomputed else "says by `is_dense` that it leaves attention as it is"
        asked = () if self.recomputed or is_idle else self._asked
        if member := passed_over(kind, IDEAS, asked):
            why = reason if self.recomputed or is_idle else f"is a {kinds[0]}"
            raise SinkscopeError(
                f"{name} {why}, so nobody asks the `{member}` of its own that it gives; leave that out, or derive it "
                "from sinkscope.StaticPolicy and give it `sees`, or from sinkscope.ScoredPolicy and give it `score`."
            )
        if not _is_kept(self.kept):
            raise SinkscopeError(
                f"{name} says by `kept` that a cache holds {shown(self.kept)}; give sinkscope.policies.Kept(first, "
                "last), whole numbers of tokens from 0 and from 1 on, or None where it may need any."
            )
        if self.recomputed and self.kept is None:
            raise SinkscopeError(
                f"{name} is recomputed and does not say by `kept` how many tokens; derive it from sinkscope.Recompute."
            )
        inherited: Any = next(cls for cls in kind.__mro__ if is_built_in(cls) and "cache_size" in vars(cls))
        if self.cache_size != (size := inherited.cache_size.fget(self)):
            raise SinkscopeError(
                f"{name} says by `cache_size` that {shown(self.cache_size)} tokens are kept, and a cache holds "
                f"{'every one' if size is None else size} for it; leave out `cache_size`."
            )
        if not is_built_in(owner(kind, "coordinates")):
            expected: Any = Policy.coordinates
            told_names, names = set(self.coordinates), set(expected.fget(self))
            if told_names != names:
                told = [
                    f"{what} {', '.join(sorted(some))}"
                    for what, some in (("lack", names - told_names), ("add", told_names - names))
                    if some
                ]
                raise SinkscopeError(
                    f"the `coordinates` of {name} {' and '.join(told)}; give those of sinkscope.Policy, with other "
                    "values where they differ, and leave settings to policy_settings, which has every field."
                )

    @property
    def coordinates(self) -> dict[str, str | int | float]:
        """What a record keeps of it beside its name, so that whoever reads the record decides by data.

        policy_kind        name of its class, with its module where that is none of this package
        policy_settings    every field, as JSON; what JSON cannot hold as its repr
        cache_size, sinks  tokens; a cache_size of -1 has no bound
        recomputed         1 where keys and values are rebuilt for every new token, else 0
        sink_values        "kept", "zeroed", "mean", "added", .., as in `SinkWindow`
        sink_bias          added to the logits of the sinks, or of the chosen keys
        positions          "cache" or "original"
        placement          the layers and heads it acts in, in words; empty for all
        """
        return {
            "policy_kind": kind_of(type(self)),
            "policy_settings": _told(self.settings),
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
        if self.label is None:
            plain: Any = Policy.description
            own = is_built_in(type(self)) or not is_built_in(owner(type(self), "description"))
            told = self.description if own else plain.fget(self)  # it may do something else than what it is made of
            return ", ".join(filter(None, [told, self.place]))
        return in_characters(self.label) if isinstance(self.label, str) else shown(self.label)

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        own = {name: value for name, value in self.settings.items() if name not in ("layers", "heads", "label")}
        return f"{type(self).__name__}({', '.join(f'{name}={safe_repr(value)}' for name, value in own.items())})"


def _told(settings: dict[str, Any]) -> str:
    """Settings as JSON; where one holds itself, or is nested too deep, each as its repr."""
    try:
        return json.dumps(settings, default=safe_repr, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return json.dumps({name: safe_repr(value) for name, value in settings.items()}, sort_keys=True)


def _is_kept(kept: Any) -> bool:
    """Whether `kept` of a policy can be what it says: sizes of a cache, or None."""
    whole = isinstance(kept, Kept) and all(type(size) is int for size in kept)
    return kept is None or (whole and kept.first >= 0 and kept.last >= 1)


def bound_evictions(policy: Policy, layer: BoundLayer) -> tuple[Eviction, ...]:
    """What `bind` of a policy gives a layer; SinkscopeError for what a layer cannot carry out."""
    evictions: Any = policy.bind(layer)
    if not isinstance(evictions, tuple) or not all(isinstance(each, Eviction) for each in evictions):
        raise SinkscopeError(
            f"`bind` of {policy!r} gave {evictions!r}; it has to give a tuple of evictions, empty for dense attention.",
            page="A policy, a normaliser or a probe of my own",
        )
    if is_built_in(owner(type(policy), "bind")):
        return evictions
    for eviction in evictions:
        _check_eviction(eviction, policy, layer.heads)
        if not isinstance(eviction, ScoredEviction):
            try_eviction(eviction, policy)
    if policy.kept is not None and not (evictions and all(_keeps(each, policy) for each in evictions)):
        first, last = policy.kept
        raise SinkscopeError(
            f"{policy!r} says by `kept` that a cache holds the first {first} tokens and the last {last}, and its "
            f"`bind` gave {', '.join(type(each).__name__ for each in evictions) or 'nothing'} for other keys or some "
            "heads; leave out `kept`, so that a cache holds all keys, or derive it from sinkscope.SinkWindow."
        )
    return evictions


def _keeps(eviction: Eviction, policy: Policy) -> bool:
    """Whether an eviction is that of a cache with the tokens that a policy keeps, and of no others."""
    if not isinstance(eviction, WindowEviction) or policy.kept is None:
        return False
    everywhere = policy.is_partial or eviction.heads is None or bool(eviction.heads.all())
    sizes = (eviction.sinks, eviction.window)
    return everywhere and sizes == tuple(policy.kept) and eviction.since == sum(sizes) + 1


def _check_eviction(eviction: Eviction, policy: Policy, count: int) -> None:
    heads, told = eviction.heads, f"`bind` of {policy!r} gave {type(eviction).__name__} with"
    if heads is not None and not (
        isinstance(heads, Tensor) and heads.dtype == torch.bool and tuple(heads.shape) == (count,)
    ):
        raise SinkscopeError(f"{told} heads={heads!r}; it has to give {count} booleans, one for each head, or None.")
    if eviction.values not in VALUES:
        raise SinkscopeError(f"{told} values={eviction.values!r}; give one of {', '.join(VALUES)}.")
    if not isinstance(eviction.since, int) or eviction.since < 0:
        raise SinkscopeError(f"{told} since={eviction.since!r}; give the place of a query, 0 or more.")
    if not is_bias(eviction.bias):
        raise SinkscopeError(
            f"{told} bias={eviction.bias!r}; give a number of at most {LARGEST_BIAS:.0e} either way, or -math.inf to "
            "evict."
        )


def is_bias(value: Any) -> bool:
    """Whether a number can be added to logits, which are float32, and leaves them finite; or evicts."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and (value == -math.inf or abs(value) <= LARGEST_BIAS)


def check_count(policy: Policy, name: str, least: int) -> None:
    """Raise SinkscopeError when a field is no whole number from `least` on."""
    value = getattr(policy, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SinkscopeError(
            f"{type(policy).__name__}({name}={shown(value)}) cannot be kept; give a whole {name} >= {least}."
        )


def check_bias(bias: float) -> None:
    """Raise SinkscopeError when a bias is no number, or one that leaves nothing but the keys it is added to."""
    if not is_bias(bias):
        raise SinkscopeError(
            f"bias={shown(bias)} is no dose; give a number of at most {LARGEST_BIAS:.0e} either way, or -math.inf to "
            "evict."
        )
