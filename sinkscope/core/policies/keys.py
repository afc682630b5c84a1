"""Policies of chosen keys: a dial on their logits, down to taking them away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sinkscope.core.policies.base import VALUES, Policy, check_bias, check_choice
from sinkscope.errors import SinkscopeError


@dataclass(frozen=True, kw_only=True, repr=False)
class ChosenKeys(Policy):
    """A policy of keys chosen by their places in the text; all others stay as they are.

    Raises:
        SinkscopeError: no keys, or a key that is no place in a text; keys that would leave a query nothing to see.
    """

    start: int | None = None  # type: ignore[misc]

    def __post_init__(self) -> None:
        self._check_keys()
        if self.start is None:
            object.__setattr__(self, "start", self._default_start())
        if not isinstance(self.start, int) or self.start < 0:
            raise SinkscopeError(f"start={self.start!r} is no place in a text; give a whole number, 0 or more.")
        if self.bias == -math.inf and not self.once_read and set(range(self.start + 1)) <= set(self.keys or ()):
            raise SinkscopeError(
                f"query {self.start} would see no key: all {self.start + 1} up to its own are evicted; "
                f"give start={max(self.keys or ()) + 1}, so that they are evicted once they have been read, or fewer "
                "keys."
            )

    def _check_keys(self) -> None:
        keys: Any = self.keys
        whole = not isinstance(keys, (int, str)) and all(isinstance(key, int) and key >= 0 for key in keys)
        if not whole or not len(keys) or len(set(keys)) < len(keys):
            raise SinkscopeError(f"{self!r} names no keys; give different places in the text, such as keys=(0, 1).")

    def _default_start(self) -> int:
        return max(self.keys or ()) + 1

    @property
    def _named_keys(self) -> str:
        keys = sorted(self.keys or ())
        if keys == list(range(keys[0], keys[-1] + 1)) and len(keys) > 1:
            return f"keys {keys[0]}-{keys[-1]}"
        return f"key{'s' * (len(keys) > 1)} " + " ".join(map(str, keys))


@dataclass(frozen=True, repr=False)
class Evict(ChosenKeys):
    """Take keys away from every query from `start` on; all other keys stay at their places.

    Args:
        keys: places in the text.
        start: the first query that does not see them; the one behind the last of them when None, as when a cache
            evicts tokens that have all been read.
        once_read: whether each key stays for its own query, which reads it, and leaves behind it: as when a cache
            evicts tokens one by one. `start` is then the query behind the first of them when None; given a later one,
            those read by then leave together.
    """

    keys: Sequence[int]  # type: ignore[misc]
    once_read: bool = field(default=False, kw_only=True)  # type: ignore[misc]

    def _default_start(self) -> int:
        return min(self.keys) + 1 if self.once_read else super()._default_start()

    @property
    def bias(self) -> float:  # type: ignore[override]
        return -math.inf

    @property
    def description(self) -> str:
        return f"evict {self._named_keys}" + f" from query {self.start}" * self.once_read


@dataclass(frozen=True, repr=False)
class Dose(ChosenKeys):
    """Add a bias to the logits of keys: a dial from evicting them (minus infinity) over 0 to strengthening them.

    Args:
        bias: added to the logits, natural logarithm: with log(2) the keys weigh twice as much against the others.
        keys: places in the text.
        start: the first query that notices; the one behind the last of the keys when None.
        values: what is left of the keys' values, as in `SinkWindow`.
    """

    bias: float  # type: ignore[misc]
    keys: Sequence[int] = (0,)  # type: ignore[misc]
    values: str = field(default="kept", kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_choice(self, "values", VALUES)
        check_bias(self)
        super().__post_init__()

    @property
    def description(self) -> str:
        left = "" if self.values == "kept" else f", values {self.values}"
        return f"dose {self.bias:+g} on {self._named_keys}{left}"
