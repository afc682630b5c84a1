"""The factors of an ablation, their levels, and the combinations of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

from sinkscope.arguments import whole_number
from sinkscope.core.policies import POSITIONS, SinkWindow
from sinkscope.errors import SinkscopeError
from sinkscope.streaming.ablation.sink_tokens import KINDS


class Level(NamedTuple):
    """One combination of the factors, and one row of the table."""

    cache_size: int
    kind: str
    positions: str
    sinks: int

    @property
    def policy(self) -> SinkWindow:
        """Without sinks there is nothing whose position could be counted in two ways."""
        return SinkWindow(self.sinks, self.cache_size - self.sinks, self.positions if self.sinks else "cache")


class Factors(NamedTuple):
    """The levels of each factor, in the order given."""

    cache_size: list[int]
    kind: list[str]
    positions: list[str]
    sinks: list[int]

    def levels(self) -> list[Level]:
        """All combinations."""
        return [Level(*each) for each in product(*self)]

    def baseline(self, cache_size: int) -> Level:
        """The most sinks; the first tokens of the text, at positions in the cache, where these are among the levels."""
        kind = "first" if "first" in self.kind else self.kind[0]
        positions = "cache" if "cache" in self.positions else self.positions[0]
        return Level(cache_size, kind, positions, max(self.sinks))


def factors_of(sinks: Any, cache_size: Any, positions: Any, kinds: Any) -> Factors:
    """The levels given, one or several for each factor; those given twice count once.

    Raises:
        SinkscopeError: an unknown level, a factor without any, or sinks that leave no room for the last tokens.
    """
    factors = Factors(
        cache_size=_levels(cache_size, "cache_size", lambda each: whole_number(each, "cache_size", 1)),
        kind=_levels(kinds, "kinds", lambda each: _one_of(each, "kinds", KINDS)),
        positions=_levels(positions, "positions", lambda each: _one_of(each, "positions", POSITIONS)),
        sinks=_levels(sinks, "sinks", lambda each: whole_number(each, "sinks", 0)),
    )
    most, smallest = max(factors.sinks), min(factors.cache_size)
    if most >= smallest:
        raise SinkscopeError(
            f"sinks={most} leave no room in cache_size={smallest} for the last tokens; give fewer sinks, or a larger "
            "cache_size."
        )
    return factors


def _levels(given: Any, name: str, checked: Callable[[Any], Any]) -> list[Any]:
    several = isinstance(given, Iterable) and not isinstance(given, str)
    levels = list(dict.fromkeys(checked(each) for each in (given if several else [given])))
    if not levels:
        raise SinkscopeError(f"{name}={given!r} is empty; give at least one.")
    return levels


def _one_of(value: Any, name: str, known: Sequence[str]) -> str:
    if value not in known:
        raise SinkscopeError(f"{name}={value!r} is unknown; give one or several of {', '.join(map(repr, known))}.")
    return str(value)
