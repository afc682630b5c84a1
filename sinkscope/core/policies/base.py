"""What a policy is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from sinkscope.core.placed import Placed
from sinkscope.errors import SinkscopeError

POSITIONS = ("cache", "original")
VALUES = ("kept", "zeroed", "mean", "added")


@dataclass(frozen=True, kw_only=True, repr=False)
class Policy(Placed):
    """Which keys a query may see, in all or in chosen layers and heads; the rest of the model is dense.

    Its *anchors* are keys apart from the others: the sinks of a window, or keys chosen one by one.

    Args:
        label: the name it has in figures and records; one that tells its numbers when None.

    Attributes:
        sinks: first tokens that are never evicted.
        window: last tokens that are kept beside them; all when None.
        positions: "cache", where distances are counted among the tokens kept (StreamingLLM), or "original", where they
            are those of the text.
        recomputed: whether keys and values are rebuilt from the tokens kept, for every new token.
        keys: anchors chosen by their places in the text, where there is no window; None where there are none.
        recent: how many of the last tokens are evicted.
        bias: added to the logits of the anchors; minus infinity evicts them.
        values: what an anchor's value is: "kept", "zeroed" or replaced by the "mean" of the values of the other keys
            that the query sees, while its key stays in the denominator; or "added" with the weight it would have, while
            its key is out of the denominator of the others.
        start: the first query that notices; everything before it is dense. None where a window says when.
        once_read: whether chosen keys are evicted one by one, each behind its own query.
    """

    label: str | None = None

    # in this order they are arguments of the policies that have them as fields
    sinks: ClassVar[int] = 0
    window: ClassVar[int | None] = None
    positions: ClassVar[str] = "cache"
    recomputed: ClassVar[bool] = False
    bias: ClassVar[float] = 0.0
    keys: ClassVar[Sequence[int] | None] = None
    recent: ClassVar[int] = 0
    values: ClassVar[str] = "kept"
    start: ClassVar[int | None] = None
    once_read: ClassVar[bool] = False

    @property
    def cache_size(self) -> int | None:
        """Tokens kept at most; None when all are."""
        return None if self.window is None else self.sinks + self.window

    @property
    def is_dense(self) -> bool:
        """Whether it leaves attention as it is."""
        return self.window is None and self.keys is None and not self.recent

    @property
    def is_partial(self) -> bool:
        """Whether some layers or heads stay dense."""
        return self.layers is not None or self.heads is not None

    @property
    def is_plain(self) -> bool:
        """Whether keeping tokens, or rebuilding them, is all it does: what any cache can."""
        changed = self.recent or self.bias or self.values != "kept"
        return self.keys is None and not changed and not self.is_partial

    @property
    def coordinates(self) -> dict[str, str | int | float]:
        """What a record keeps of it beside its name, so that whoever reads the record decides by data.

        policy_kind        name of its class
        policy_settings    every field, as JSON; what JSON cannot hold as its repr
        cache_size, sinks  tokens; a cache_size of -1 has no bound
        recomputed         1 where keys and values are rebuilt for every new token, else 0
        sink_values        "kept", "zeroed", "mean" or "added", as in `SinkWindow`
        sink_bias          added to the logits of the sinks, or of the chosen keys
        positions          "cache" or "original"
        placement          the layers and heads it acts in, in words; empty for all
        """
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "policy_kind": type(self).__name__,
            "policy_settings": json.dumps(settings, default=repr, sort_keys=True),
            "cache_size": -1 if self.cache_size is None else self.cache_size,
            "sinks": self.sinks,
            "recomputed": int(self.recomputed),
            "sink_values": self.values,
            "sink_bias": float(self.bias),
            "positions": self.positions,
            "placement": self.place,
        }

    @property
    def name(self) -> str:
        """A short name, as figures and records show it."""
        if self.label is not None:
            return self.label
        return ", ".join(filter(None, [self.description, self.place]))

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        raise NotImplementedError


def check_count(policy: Policy, name: str, least: int) -> None:
    """Raise SinkscopeError when a field is no whole number from `least` on."""
    value = getattr(policy, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SinkscopeError(
            f"{type(policy).__name__}({name}={value!r}) cannot be kept; give a whole {name} >= {least}."
        )


def check_bias(policy: Policy) -> None:
    """Raise SinkscopeError when the bias is no number, or one that leaves nothing but the anchors."""
    if not isinstance(policy.bias, (int, float)) or math.isnan(policy.bias) or policy.bias == math.inf:
        raise SinkscopeError(f"bias={policy.bias!r} is no dose; give a number, or -math.inf to evict.")


def check_choice(policy: Policy, name: str, known: Sequence[str]) -> None:
    """Raise SinkscopeError when a field is none of the words it may be."""
    if getattr(policy, name) not in known:
        raise SinkscopeError(f"{name}={getattr(policy, name)!r} is unknown; give one of {', '.join(known)}.")
