"""Interventions inside the model: keys evicted or dosed, and massive activations set (Sun et al. 2024, section 4)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.arguments import check_places, finite_number, one_of, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.intervention import Conditions, Intervention, Trial
from sinkscope.hf.models import query_heads
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy
from sinkscope.policies import Dose, Evict, EvictRecent, Policy
from sinkscope.scope.binding import layer_evictions
from sinkscope.scope.scope import Scope
from sinkscope.tokens import TokenTexts
from sinkscope.undo import Undo

WHICH = ("sinks", "random", "recent", "near-recent", "next", "attended", "delimiters")
LATE = ("recent", "near-recent")  # which move along with the query
DELIMITERS = frozenset(".,;:!?\n。，、；：！？")
MODES = ("zero", "mean")
MAGNITUDE, RATIO = 100.0, 1000.0  # Sun et al. (2024)


@dataclass(frozen=True)
class EvictKeys(Intervention):
    """Take keys away from every query from the start of scoring on, all other keys staying at their places.

    The control of recent keys is as many near-recent ones. That of every other kind is as many random keys, drawn anew
    for each text, and several times, among those between the sinks and the start, all of which have been read by then.

    >>> table = sinkscope.intervene(model, ids, [sinkscope.EvictKeys("recent")], start=16, resamples=50)
    >>> len(table)
    3

    Args:
        which: "sinks", the first tokens; "random"; "recent", the last ones before each query; "near-recent", as many
            before these; "next", the first ones behind the sinks; "attended", those between the sinks and the start
            that receive most attention from the queries from the start on; "delimiters", the first ones after the sinks
            whose text is punctuation or a line break; or places in the text, such as (0, 7).
        count: how many; as many as there are sinks when None, and of attended ones as many as carry the mass of the
            sinks, or all of them where they carry less: these have no control, as they are one of the sinks.
        bias: added to their logits instead of taking them away; minus infinity evicts.
        layers, heads: where; all when None.
    """

    which: str | Sequence[int] = "sinks"
    count: int | None = None
    bias: float = -math.inf
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.which, str) and self.which not in WHICH:
            raise SinkscopeError(
                f"which={self.which!r} is unknown; give one of {', '.join(WHICH)}, or places in the text."
            )
        if self.count is not None:
            if not isinstance(self.which, str):
                raise SinkscopeError(f"count={self.count!r} goes with a kind of keys; places count themselves.")
            whole_number(self.count, "count", 1)
        check_places(self.layers, "layers")
        check_places(self.heads, "heads")
        self._policy([0] if isinstance(self.which, str) else self.which)  # which checks the bias and the places
        if self.which in LATE and self.bias != -math.inf:
            raise SinkscopeError(f"bias={self.bias!r}: recent keys are evicted or left, as others are recent later on.")

    @property
    def name(self) -> str:
        if not isinstance(self.which, str):
            return self._policy(self.which).name
        count = "" if self.count is None else f"{self.count} "
        what = "evict" if self.bias == -math.inf else f"dose {float(self.bias):+}".removesuffix(".0") + " on"
        place = self._policy([0]).place
        return f"{what} {count}{self.which}" + (f", {place}" if place else "")

    def control(self) -> Intervention | None:
        if self.which in ("random", "near-recent") or (self.which == "attended" and self.count is None):
            return None
        count = self.count if isinstance(self.which, str) else len(self.which)
        return replace(self, which="near-recent" if self.which == "recent" else "random", count=count)

    def draws(self, conditions: Conditions) -> int:
        return conditions.draws_among(self.name, self._number(conditions)) if self.which == "random" else 1

    def check(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:
        anatomy, name = find_anatomy(model), type(model).__name__
        if not anatomy.interface:
            raise SinkscopeError(
                f"{name} does not use transformers' attention interface, so no key can be taken from it; its texts can "
                "be changed (ReplaceTokens, Shift, Repeat)."
            )
        _check_among(self.name, "layer", self.layers, anatomy.numbers)
        if (heads := query_heads(model)) is not None:
            _check_among(self.name, "head", self.heads, range(heads))
        evictions = layer_evictions(EvictRecent(1, label=self.name), model, anatomy)
        able = [number for number, one in zip(anatomy.numbers, evictions, strict=True) if one]
        if sliding := sorted(set(self.layers or ()) - set(able)):
            raise SinkscopeError(
                f"layer {sliding[0]} of `{self.name}` slides over the model's own window and stays as it is; give some "
                f"of {', '.join(map(str, able))}."
            )
        if not isinstance(self.which, str) and max(self.which) >= conditions.start:
            raise SinkscopeError(
                f"key {max(self.which)} of `{self.name}` is not before the start at {conditions.start}, from which on "
                "it would be gone; give earlier keys, or a later start (and texts long enough)."
            )
        if self.which == "delimiters" and conditions.tokenizer is None:
            raise SinkscopeError("evicting delimiters needs a tokenizer to find them; pass tokenizer=.")
        conditions.check_room(self.name, self._number(conditions))
        self.draws(conditions)
        if self.which == "delimiters":
            for number, text in enumerate(texts):
                self._places(text, number, conditions)

    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        if self.which in LATE:
            count = self._number(conditions)
            where: dict[str, Any] = {"start": conditions.start, "layers": self.layers, "heads": self.heads}
            return Trial(text, policy=EvictRecent(count, behind=count if self.which == "near-recent" else 0, **where))
        return Trial(text, policy=self._policy(self._places(text, number, conditions), conditions.start))

    def _number(self, conditions: Conditions) -> int:
        return (self.count or conditions.sinks) if isinstance(self.which, str) else len(self.which)

    def _places(self, text: Tensor, number: int, conditions: Conditions) -> list[int]:
        if not isinstance(self.which, str):
            return list(self.which)
        count = self._number(conditions)
        if self.which == "sinks":
            return list(range(count))
        if self.which == "random":
            return conditions.others(number, count)
        if self.which == "next":
            return list(range(max(conditions.sinks, count), max(conditions.sinks, count) + count))
        if self.which == "attended":
            return self._attended(number, conditions)
        words = [word.strip(" ") for word in TokenTexts(conditions.tokenizer)(text[: conditions.start].tolist())]
        found = [place for place, word in enumerate(words) if word and set(word) <= DELIMITERS]
        places = [place for place in found if place >= conditions.sinks]
        if len(places) < count:
            raise SinkscopeError(
                f"text {number} has {len(places)} delimiters among its tokens {conditions.sinks} to "
                f"{conditions.start - 1}, and {count} are to be evicted; give fewer, or a later start."
            )
        return places[:count]

    def _attended(self, number: int, conditions: Conditions) -> list[int]:
        """The keys between the sinks and the start that receive most attention, in order of their places."""
        if conditions.attention is None:
            raise SinkscopeError(f"`{self.name}` follows the attention of a model; run it with sinkscope.intervene.")
        received = conditions.attention(number)["received"].isel(sequence=0)
        for dim, chosen in (("layer", self.layers), ("head", self.heads)):
            received = received if chosen is None else received.sel({dim: list(chosen)})
        mass = received.mean(["layer", "head"]).values
        others = np.arange(conditions.sinks, conditions.start)
        order = others[np.argsort(-mass[others], kind="stable")]
        count = self.count
        if count is None:
            reached = np.cumsum(mass[order]) >= mass[: conditions.sinks].sum()
            count = int(reached.argmax()) + 1 if reached.any() else len(order)
        return sorted(order[:count].tolist())

    def _policy(self, keys: Sequence[int], start: int | None = None) -> Policy:
        where: dict[str, Any] = {"start": start, "layers": self.layers, "heads": self.heads}
        return Evict(keys, **where) if self.bias == -math.inf else Dose(self.bias, keys, **where)


class Site(NamedTuple):
    """Wherever dimension `watched` of a layer is massive, `changed` is set to `value`."""

    watched: int
    changed: int
    value: float


@dataclass(frozen=True)
class SetMassive(Intervention):
    """Set massive activations behind chosen layers to zero, or to their mean.

    An activation is massive where its magnitude is above `magnitude` and at least `ratio` times the median magnitude of
    its layer's hidden state (Sun et al. 2024). The texts as they are tell in which dimensions there are any; these are
    set, in the layer's output, wherever they are massive while it runs. The mean is that of a dimension over all places
    where it was massive, in all texts: a constant. The control does the same to as many other dimensions of the same
    tokens, drawn at random for each text: it tells the tokens from the dimensions, not the dimensions from their size.

    >>> sinkscope.SetMassive(layers=[1], mode="mean").name
    'massive dimensions to mean behind layer 1'

    Args:
        layers: behind which; the first layer after which there are any when None.
        mode: "zero" or "mean".
        magnitude, ratio: what is massive.
    """

    layers: Sequence[int] | None = None
    mode: str = "zero"
    magnitude: float = MAGNITUDE
    ratio: float = RATIO
    at_random: bool = False
    sites: Mapping[int, Sequence[Site]] | None = None
    means: Mapping[int, Mapping[int, Tensor]] | None = None

    def __post_init__(self) -> None:
        one_of(self.mode, "mode", MODES)
        finite_number(self.magnitude, "magnitude", 0)
        finite_number(self.ratio, "ratio", 0)
        check_places(self.layers, "layers")

    @property
    def name(self) -> str:
        what = "random" if self.at_random else "massive"
        above = where = ""
        if (self.magnitude, self.ratio) != (MAGNITUDE, RATIO):
            above = f" above {self.magnitude:g} and {self.ratio:g} medians"
        if self.layers is not None:
            where = f" behind layer{'s' * (len(self.layers) > 1)} {' '.join(map(str, self.layers))}"
        return f"{what} dimensions{above} to {self.mode}{where}"

    def control(self) -> Intervention | None:
        return None if self.at_random else replace(self, at_random=True, sites=None, means=None)

    def draws(self, conditions: Conditions) -> int:
        if not self.at_random or not self.means:
            return 1
        sizes = [(len(means), len(next(iter(means.values())))) for means in self.means.values()]
        return min(conditions.draws_among(self.name, count, size - count) for count, size in sizes)

    def check(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> None:
        anatomy = find_anatomy(model)
        _check_among(self.name, "layer", self.layers, anatomy.numbers)
        if any(part.layer is None for part in anatomy.parts):
            raise SinkscopeError(
                f"{type(model).__name__} does not keep its layers in a list, so what they hand on cannot be changed."
            )

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], conditions: Conditions) -> Intervention:
        found = self._found(model, texts)
        layers = list(found)[:1] if self.layers is None else self.layers
        missing = [layer for layer in layers if layer not in found]
        if missing or not layers:
            where = f"behind layer {missing[0]}" if missing else "in this model"
            raise SinkscopeError(
                f"there is no activation above {self.magnitude:g} and {self.ratio:g} times the median {where}; give a "
                "lower magnitude or ratio, or other layers."
            )
        sites = {layer: self._sites(found[layer], conditions) for layer in layers}
        return replace(self, sites=sites, means={layer: found[layer] for layer in layers})

    def apply(self, text: Tensor, number: int, conditions: Conditions) -> Trial:
        drawn = {layer: self._sites(means, conditions, number) for layer, means in (self.means or {}).items()}

        def hooks(model: nn.Module, undo: ExitStack) -> None:
            for part in find_anatomy(model).parts:
                if part.layer is not None and (sites := (drawn or self.sites or {}).get(part.number)):
                    hook = _hook(lambda output, sites=sites: self._changed(output, sites))
                    undo.callback(part.layer.register_forward_hook(hook).remove)

        return Trial(text, hooks=hooks)

    def _massive(self, hidden: Tensor) -> Tensor:
        magnitude = hidden.abs()
        return (magnitude > self.magnitude) & (magnitude >= self.ratio * magnitude.median())

    def _changed(self, hidden: Tensor, sites: Sequence[Site]) -> Tensor:
        massive, changed = self._massive(hidden), hidden.clone()
        for site in sites:
            changed[..., site.changed] = hidden[..., site.changed].masked_fill(massive[..., site.watched], site.value)
        return changed

    def _sites(self, means: Mapping[int, Tensor], conditions: Conditions, number: int = 0) -> list[Site]:
        """What to set behind a layer in the `number`-th text, from the mean hidden state [dim] where each massive
        dimension is massive."""
        watched = sorted(means)
        size = len(means[watched[0]])
        others = [dimension for dimension in range(size) if dimension not in means]
        if self.at_random and len(others) < len(watched):
            raise SinkscopeError(
                f"{len(watched)} of {size} dimensions are massive, which leaves too few for a control; give a higher "
                "magnitude or ratio."
            )
        drawn = (
            conditions.random(size, number).choice(others, len(watched), replace=False) if self.at_random else watched
        )
        return [
            Site(dimension, int(changed), float(means[dimension][int(changed)]) if self.mode == "mean" else 0.0)
            for dimension, changed in zip(watched, drawn, strict=True)
        ]

    def _found(self, model: nn.Module, texts: Sequence[Tensor]) -> dict[int, dict[int, Tensor]]:
        """By layer and massive dimension, in order: the mean hidden state [dim] where it is massive."""
        sums: dict[int, dict[int, tuple[Any, int]]] = defaultdict(lambda: defaultdict(lambda: (0, 0)))

        def note(layer: int, hidden: Tensor) -> None:
            massive = self._massive(hidden)
            for dimension in massive.flatten(0, -2).any(0).nonzero().flatten().tolist():
                states = hidden[massive[..., dimension]].double()
                total, count = sums[layer][dimension]
                sums[layer][dimension] = total + states.sum(0), count + len(states)

        anatomy, device = find_anatomy(model), reading_device(model)
        with Scope(model, (), alone=True), Undo() as undo, torch.no_grad():  # inside a scope, which refuses NaN
            for part in anatomy.parts:
                undo.hang(part.layer, _hook(lambda hidden, layer=part.number: note(layer, hidden)))
            for text in texts:
                anatomy.base(input_ids=text[None].to(device))
        return {
            layer: {dimension: total / count for dimension, (total, count) in sorted(dimensions.items())}
            for layer, dimensions in sorted(sums.items())
        }


def _hook(act: Any) -> Any:
    """A hook by which `act` sees, or replaces, the hidden states [batch, token, dim] that a layer hands on."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        many = isinstance(output, tuple)
        changed = act(output[0] if many else output)
        return changed if changed is None or not many else (changed, *output[1:])

    return hook


def _check_among(name: str, kind: str, numbers: Sequence[int] | None, known: Sequence[int]) -> None:
    """Raise SinkscopeError when the intervention `name` asks for layers or heads that are not among the known ones."""
    for number in numbers or ():
        if number not in known:
            raise SinkscopeError(
                f"{kind} {number} of `{name}` is out of range: the model has {kind}s {min(known)} to {max(known)}."
            )
