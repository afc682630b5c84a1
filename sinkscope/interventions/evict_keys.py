"""Keys evicted: sinks, as many random ones, as many recent ones, delimiters, or any others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sinkscope.arguments import whole_number
from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.policies import Dose, Evict, EvictRecent, Policy
from sinkscope.core.policy_on_layers import layer_evictions, query_heads
from sinkscope.errors import SinkscopeError
from sinkscope.interventions.intervention import Arm, Intervention, Setting, check_among, check_numbers

WHICH = ("sinks", "random", "recent", "delimiters")
DELIMITERS = frozenset(".,;:!?\n。，、；：！？")


@dataclass(frozen=True)
class EvictKeys(Intervention):
    """Take keys away from every query from the start of scoring on, all other keys staying at their places.

    The control of every kind is as many random keys, drawn anew for each text among those between the sinks and the
    start, all of which have been read by then.

    Args:
        which: "sinks", the first tokens; "random"; "recent", the last ones before each query; "delimiters", the first
            ones after the sinks whose text is punctuation or a line break; or places in the text, such as (0, 7).
        count: how many; as many as there are sinks when None.
        bias: added to their logits instead of taking them away; minus infinity evicts.
        layers, heads: where; all when None.
    """

    which: str | Sequence[int] = "sinks"
    count: int | None = None
    bias: float = -math.inf
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.which, str):
            if self.which not in WHICH:
                raise SinkscopeError(
                    f"which={self.which!r} is unknown; give one of {', '.join(WHICH)}, or places in the text."
                )
        elif self.count is not None:
            raise SinkscopeError(f"count={self.count!r} goes with a kind of keys; places count themselves.")
        if self.count is not None:
            whole_number(self.count, "count", 1)
        check_numbers("layers", self.layers)
        check_numbers("heads", self.heads)
        self._policy([0] if isinstance(self.which, str) else self.which, None)
        if self.which == "recent" and self.bias != -math.inf:
            raise SinkscopeError(f"bias={self.bias!r}: recent keys are evicted or left, as others are recent later on.")

    @property
    def name(self) -> str:
        if not isinstance(self.which, str):
            return self._policy(self.which, None).name
        count = "" if self.count is None else f"{self.count} "
        what = "evict" if self.bias == -math.inf else f"dose {float(self.bias):+}".removesuffix(".0") + " on"
        place = self._policy([0], None).place
        return f"{what} {count}{self.which}" + (f", {place}" if place else "")

    def control(self) -> Intervention | None:
        if self.which == "random":
            return None
        count = self.count if isinstance(self.which, str) else len(self.which)
        return EvictKeys("random", count, self.bias, self.layers, self.heads)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        self._check_model(model)
        if not isinstance(self.which, str) and max(self.which) >= setting.start:
            raise SinkscopeError(
                f"key {max(self.which)} of `{self.name}` is not before the start at {setting.start}, from which on it "
                "would be gone; give earlier keys, or a later start (and texts long enough)."
            )
        if self.which == "delimiters" and setting.tokenizer is None:
            raise SinkscopeError("evicting delimiters needs a tokenizer to find them; pass tokenizer=.")
        setting.check_room(self.name, self._number(setting))
        if self.which == "delimiters":
            for number, text in enumerate(texts):
                self._places(text, number, setting)

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        if self.which == "recent":
            recent = EvictRecent(self._number(setting), start=setting.start, layers=self.layers, heads=self.heads)
            return Arm.of(text, policy=recent)
        return Arm.of(text, policy=self._policy(self._places(text, number, setting), setting.start))

    def _number(self, setting: Setting) -> int:
        return (self.count or setting.sinks) if isinstance(self.which, str) else len(self.which)

    def _places(self, text: Tensor, number: int, setting: Setting) -> list[int]:
        if not isinstance(self.which, str):
            return list(self.which)
        count = self._number(setting)
        if self.which == "sinks":
            return list(range(count))
        if self.which == "random":
            return setting.others(number, count)
        places = _delimiters(text[: setting.start], setting)
        if len(places) < count:
            raise SinkscopeError(
                f"text {number} has {len(places)} delimiters among its tokens {setting.sinks} to {setting.start - 1}, "
                f"and {count} are to be evicted; give fewer, or a later start."
            )
        return places[:count]

    def _policy(self, keys: Sequence[int], start: int | None) -> Policy:
        if self.bias == -math.inf:
            return Evict(keys, start=start, layers=self.layers, heads=self.heads)
        return Dose(self.bias, keys, start=start, layers=self.layers, heads=self.heads)

    def _check_model(self, model: nn.Module) -> None:
        anatomy, name = find_anatomy(model), type(model).__name__
        if not anatomy.interface:
            raise SinkscopeError(
                f"{name} does not use transformers' attention interface, so no key can be taken from it; its texts can "
                "be changed (ReplaceTokens, Shift, Repeat)."
            )
        check_among(self.name, "layer", self.layers, anatomy.numbers)
        heads = query_heads(model)
        check_among(self.name, "head", self.heads, None if heads is None else range(heads))
        evictions = layer_evictions(EvictRecent(1, label=self.name), model, anatomy)
        able = [number for number, one in zip(anatomy.numbers, evictions, strict=True) if one is not None]
        sliding = sorted(set(self.layers or ()) - set(able))
        if sliding:
            raise SinkscopeError(
                f"layer {sliding[0]} of `{self.name}` slides over the model's own window and stays as it is; give some "
                f"of {', '.join(map(str, able))}."
            )


def _delimiters(tokens: Tensor, setting: Setting) -> list[int]:
    """Places of delimiters after the sinks."""
    decode: Any = setting.tokenizer.decode
    texts = [decode([int(token)]) for token in tokens]
    return [
        place
        for place, text in enumerate(texts)
        if place >= setting.sinks and (bare := text.strip(" ")) and set(bare) <= DELIMITERS
    ]
