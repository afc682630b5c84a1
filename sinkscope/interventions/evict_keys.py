"""Keys evicted: sinks, as many random ones, as many recent ones, delimiters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sinkscope.core.policies import Dose, EvictRecent, Policy
from sinkscope.errors import SinkscopeError
from sinkscope.interventions.intervention import Arm, Intervention, Setting

WHICH = ("sinks", "random", "recent", "delimiters")
DELIMITERS = frozenset(".,;:!?\n")


@dataclass(frozen=True)
class EvictKeys(Intervention):
    """Take keys away from every query from the start of scoring on, all other keys staying at their places.

    The control of every kind is as many random keys, drawn anew for each text among those between the sinks and the
    start, all of which have been read by then.

    Args:
        which: "sinks", the first tokens; "random"; "recent", the last ones before each query; "delimiters", the first
            ones after the sinks whose text is punctuation or a line break.
        count: how many; as many as there are sinks when None.
        bias: added to their logits instead of taking them away; minus infinity evicts.
        layers, heads: where; all when None.
    """

    which: str = "sinks"
    count: int | None = None
    bias: float = -math.inf
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.which not in WHICH:
            raise SinkscopeError(f"which={self.which!r} is unknown; give one of {', '.join(WHICH)}.")
        if self.count is not None and (not isinstance(self.count, int) or self.count < 1):
            raise SinkscopeError(f"count={self.count!r} evicts nothing; give a whole number, 1 or more.")

    @property
    def name(self) -> str:
        count = "" if self.count is None else f"{self.count} "
        what = "evict" if self.bias == -math.inf else f"dose {self.bias:+g} on"
        place = self._policy([0], 1).place
        return f"{what} {count}{self.which}" + (f", {place}" if place else "")

    def control(self) -> Intervention | None:
        if self.which == "random":
            return None
        return EvictKeys("random", self.count, self.bias, self.layers, self.heads)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        count = self.count or setting.sinks
        if self.which == "delimiters" and setting.tokenizer is None:
            raise SinkscopeError("evicting delimiters needs a tokenizer to find them; pass tokenizer=.")
        if count >= setting.start - setting.sinks:
            raise SinkscopeError(
                f"{count} keys are to be evicted of the {setting.start} before the first query that notices; give a "
                "later start."
            )

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        count, start = self.count or setting.sinks, setting.start
        if self.which == "recent":
            return Arm.of(text, policy=EvictRecent(count, start=start, layers=self.layers, heads=self.heads))
        if self.which == "sinks":
            keys = list(range(count))
        elif self.which == "random":
            drawn = setting.random(number).choice(range(setting.sinks, start), count, replace=False)
            keys = sorted(int(key) for key in drawn)
        else:
            keys = _delimiters(text[:start], setting)[:count]
            if len(keys) < count:
                raise SinkscopeError(
                    f"text {number} has {len(keys)} delimiters among its tokens {setting.sinks} to {start - 1}, and "
                    f"{count} are to be evicted; give fewer, or a later start."
                )
        return Arm.of(text, policy=self._policy(keys, start))

    def _policy(self, keys: list[int], start: int) -> Policy:
        return Dose(self.bias, keys, start=start, layers=self.layers, heads=self.heads)


def _delimiters(tokens: Tensor, setting: Setting) -> list[int]:
    """Places of delimiters after the sinks."""
    decode: Any = setting.tokenizer.decode
    texts = [decode([int(token)]) for token in tokens]
    return [
        place
        for place, text in enumerate(texts)
        if place >= setting.sinks and (bare := text.strip(" ")) and set(bare) <= DELIMITERS
    ]
