"""The attention configuration: one value that says how the model is to attend, and the controls that ask for it.

One field is one control, described by one entry: its label, its tooltip, its choices or limits. The policies that can
be chosen are the entries of `POLICIES`, each with the fields it uses; the fields it does not use are at rest. A policy
or a normaliser may also be an object of any class, which then runs as it stands.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Annotated, Any, get_origin, get_type_hints

import torch

from sinkscope.attention.placement import is_same
from sinkscope.errors import SinkscopeError
from sinkscope.figures.style import visible
from sinkscope.glossary import DEFINITIONS
from sinkscope.normalisers import (
    ClippedSoftmax,
    LearnedSink,
    Normaliser,
    ReLU,
    Sigmoid,
    Softmax,
    Softmax1,
    Sparsemax,
)
from sinkscope.policies import (
    TOVA,
    Dense,
    Dose,
    Evict,
    HeavyHitters,
    Policy,
    Recompute,
    SinkWindow,
    StaticPolicy,
    Window,
)

GONE = -math.inf
MOST_SINKS = 16


@dataclass(frozen=True)
class Control:
    """What a field is set with: the name beside it, and what it does."""

    label: str
    tooltip: str


@dataclass(frozen=True)
class Choice(Control):
    """A list of values."""

    values: Mapping[str, Any]  # what can be chosen, by its label
    label_of: Callable[[Any], str] = str  # the label of a value that is not listed, which only code can ask for
    is_ordered: bool = False  # whether the values run from the least to the most, so that a slider suits them


@dataclass(frozen=True)
class Number(Control):
    """Whole numbers."""

    limits: Callable[[int], tuple[int, int]]  # the lowest and the highest in a text of so many tokens
    is_typed: bool = False  # whether it is typed, and not a slider


class LayerRange(Control):
    """A first and a last layer of the model; None stands for all layers."""


def controls_of(kind: type) -> dict[str, Control]:
    """The controls of a dataclass, by field: the annotation of a field holds its entry."""
    hints = get_type_hints(kind, vars(sys.modules[kind.__module__]), include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


@dataclass(frozen=True)
class PolicyEntry:
    """A policy that the explorer offers."""

    label: str
    uses: tuple[str, ...]  # the fields of the configuration that `make` makes it from
    make: Callable[[Configuration], Policy]
    # the first query that differs from the model as it is, where neither the size of the cache nor the policy's own
    # `sees` says it; all may differ when None
    first_affected: Callable[[Configuration], int] | None = None


def _sink_window(asked: Configuration) -> Policy:
    if asked.window < asked.sinks:
        raise SinkscopeError(
            f"a window of {asked.window} is smaller than the {asked.sinks} sinks beside it; choose a larger window or "
            "fewer sinks."
        )
    dose = asked.dose if asked.sinks else 0.0
    return SinkWindow(asked.sinks, asked.window, asked.positions, bias=dose, layers=asked.chosen_layers)


def _dosed(asked: Configuration) -> Policy:
    is_dosed = asked.dose and asked.sinks
    return Dose(asked.dose, range(asked.sinks), layers=asked.chosen_layers) if is_dosed else Dense()


def _chosen(asked: Configuration) -> Policy:
    if not asked.evicted:
        return Dense()
    return Evict(asked.evicted, start=asked.since, once_read=True, layers=asked.chosen_layers)


# The policies in the explorer's list. To offer another one, add its entry here and nothing anywhere else, for example
#     "tova": PolicyEntry("TOVA", ("window",), lambda asked: TOVA(budget=asked.window)),
POLICIES: dict[str, PolicyEntry] = {
    "dense": PolicyEntry("dense", ("sinks", "dose", "layers"), _dosed, lambda asked: asked.sinks),
    "window": PolicyEntry(
        "window", ("window", "layers"), lambda asked: Window(asked.window, layers=asked.chosen_layers)
    ),
    "recompute": PolicyEntry("re-computed", ("window",), lambda asked: Recompute(asked.window)),
    "sinks": PolicyEntry("sinks + window", ("sinks", "window", "dose", "positions", "layers"), _sink_window),
    "h2o": PolicyEntry("H2O", ("window",), lambda asked: HeavyHitters(asked.window, asked.window // 2)),
    "tova": PolicyEntry("TOVA", ("window",), lambda asked: TOVA(asked.window)),
    "chosen": PolicyEntry(
        "chosen tokens",
        ("evicted", "since", "layers"),
        _chosen,
        lambda asked: max(asked.since, min(asked.evicted) + 1),  # each token stays until it has been read
    ),
}
POLICY_NAMES = {entry.label: name for name, entry in POLICIES.items()}
OWN = "the model's own"
NORMALISERS: dict[str, Normaliser | None] = {
    OWN: None,
    "softmax": Softmax(),
    "softmax1": Softmax1(),
    "learned sink, logit 0": LearnedSink(0.0),
    "clipped softmax": ClippedSoftmax(),
    "sparsemax": Sparsemax(),
    "sigmoid": Sigmoid(),
    "ReLU": ReLU(),
}
_FINITE_DOSES = (-8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6)
DOSES = {"−∞ (gone)": GONE} | {f"{d:+g}".replace("-", "−") if d else "0": float(d) for d in _FINITE_DOSES}
POSITIONS = {"in the cache": "cache", "in the text": "original"}


@dataclass(frozen=True, eq=False)
class Configuration:
    """How the model is to attend.

    Attributes:
        policy, normaliser: a name in `POLICIES` or `NORMALISERS`, or an object of any class.
        sinks, window, dose, positions: as their controls say; a dose of minus infinity evicts the sinks.
        since: the first query that does not see evicted tokens. From the start on another token would become the sink.
        layers: the first and the last layer that a policy and a normaliser chosen by name act in; all when None.
        evicted: places of the tokens taken away, none before it has been read. Its control is the text itself.

    Raises:
        SinkscopeError: a name that there is not, an object that is no policy or no normaliser, layers that are no pair.
    """

    policy: Annotated[
        str | Policy,
        Choice(
            "policy",
            DEFINITIONS["policy"],
            POLICY_NAMES,
            lambda policy: policy.name,
        ),
    ] = "dense"
    sinks: Annotated[
        int,
        Number(
            "sinks",
            "how many first tokens are kept beside the window, or dosed; a sink is one that many heads attend to",
            lambda length: (0, min(MOST_SINKS, length)),
        ),
    ] = 4
    window: Annotated[
        int,
        Number(
            "window", "how many last tokens are kept; under H2O and TOVA, how many in all", lambda length: (1, length)
        ),
    ] = 128
    dose: Annotated[
        float,
        Choice(
            "sink dose",
            "added to the attention logits of the sinks; −∞ takes them away",
            DOSES,
            "{:+g}".format,
            is_ordered=True,
        ),
    ] = 0.0
    positions: Annotated[
        str, Choice("positions", "the positions that kept sinks have: counted in the cache, or their own", POSITIONS)
    ] = "cache"
    since: Annotated[
        int,
        Number(
            "evicted for queries from",
            "the first query that does not see the tokens evicted in the text",
            lambda length: (1, length - 1),
        ),
    ] = 64
    normaliser: Annotated[
        str | Normaliser,
        Choice(
            "normaliser",
            "how attention scores become weights: softmax, or another rule",
            {name: name for name in NORMALISERS},
            repr,
        ),
    ] = OWN
    layers: Annotated[
        tuple[int, int] | None,
        LayerRange("in layers", "the first and the last layer in which policy and normaliser act"),
    ] = None
    evicted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_slot("policy", self.policy, Policy, POLICIES)
        _check_slot("normaliser", self.normaliser, Normaliser, NORMALISERS)
        if self.layers is not None and not (isinstance(self.layers, (tuple, list)) and len(self.layers) == 2):
            raise SinkscopeError(f"layers={self.layers!r} is no range; give the first and the last layer, or None.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Configuration):
            return NotImplemented
        return all(is_same(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def of_text(cls, length: int) -> Configuration:
        """The model as it is, with sizes at hand that mean something in a text of `length` tokens."""
        since = max(1, min(cls.since, 2 * length // 3))
        return cls(sinks=min(cls.sinks, length), window=min(cls.window, length), since=since)

    @property
    def policy_slot(self) -> Policy:
        """The policy that fills the slot; raises SinkscopeError for sizes that no cache can have."""
        return POLICIES[self.policy].make(self) if isinstance(self.policy, str) else self.policy

    @property
    def normaliser_slot(self) -> Normaliser | None:
        """The normaliser that fills the slot; None for the model's own."""
        if isinstance(self.normaliser, Normaliser):
            return self.normaliser
        chosen = NORMALISERS[self.normaliser]
        return None if chosen is None else replace(chosen, layers=self.chosen_layers)

    @property
    def name(self) -> str:
        """What the model does, in a few words."""
        normaliser = self.normaliser_slot
        if normaliser is None:
            return self.policy_slot.name
        words = [self.normaliser, normaliser.place] if isinstance(self.normaliser, str) else [repr(normaliser)]
        return f"{self.policy_slot.name}; {', '.join(filter(None, words))}"

    @property
    def is_baseline(self) -> bool:
        """Whether it leaves the model as it is."""
        return type(self.policy_slot) is Dense and self.normaliser_slot is None

    @property
    def is_recomputed(self) -> bool:
        """Whether keys and values are rebuilt for every query, so that each query has maps of its own."""
        try:
            return bool(self.policy_slot.coordinates["recomputed"])
        except SinkscopeError:  # there is no such policy
            return False

    @property
    def uses(self) -> set[str]:
        """The fields that matter; the controls of all others are at rest."""
        if isinstance(self.policy, str):
            return {"policy", "normaliser", *POLICIES[self.policy].uses}
        is_placed = isinstance(self.normaliser, str) and self.normaliser != OWN and not self.is_recomputed
        return {"policy", "normaliser"} | ({"layers"} if is_placed else set())

    @property
    def chosen_layers(self) -> tuple[int, ...] | None:
        """The layers that a policy and a normaliser chosen by name act in; all when None."""
        if self.layers is None or "layers" not in self.uses:
            return None
        return tuple(range(self.layers[0], self.layers[1] + 1))

    @property
    def chosen_tokens(self) -> tuple[int, ...]:
        """The tokens taken away one by one; none under a policy that does not use them."""
        return tuple(self.evicted) if "evicted" in self.uses else ()

    def first_affected(self, length: int) -> int:
        """The first query in a text of `length` tokens that differs from the model as it is; 0 when all may."""
        policy = self.policy_slot
        if self.is_baseline or self.normaliser_slot is not None:
            return 0
        if isinstance(policy, StaticPolicy):
            query, key = torch.arange(length)[:, None], torch.arange(length)[None]
            hidden = (~policy.sees(query, key) & (key <= query)).any(-1).nonzero()
            if len(hidden):
                return int(hidden[0])
        if policy.cache_size is not None and (policy.kept is not None or policy.remembers):
            return policy.cache_size + (0 if self.is_recomputed else 1)
        first = POLICIES[self.policy].first_affected if isinstance(self.policy, str) else None
        return 0 if first is None else first(self)

    def check(self, length: int) -> None:
        """Raise SinkscopeError when a text of `length` tokens cannot be read like this."""
        policy = self.policy_slot
        if self.is_recomputed and policy.coordinates["placement"]:
            raise SinkscopeError(
                f"`{policy.name}` runs whole windows afresh, in all layers and heads; give it without layers and heads."
            )
        evicted = self.chosen_tokens
        for key in evicted:
            if not 0 <= key < length:
                raise SinkscopeError(f"token {key} cannot be evicted: the text has tokens 0 to {length - 1}.")
        if evicted and self.since >= length:
            raise SinkscopeError(
                f"tokens are evicted from query {self.since} on, but the last query is {length - 1}; choose an earlier "
                "one."
            )
        if len(evicted) >= length:
            raise SinkscopeError(
                f"all {length} tokens are evicted, so every query would see only itself; give one of them back."
            )


CONTROLS = controls_of(Configuration)


def _untaken(name: str, taken: Iterable[str]) -> str:
    """A name, with a number where it is taken."""
    free = (f"{name} ({at})" for at in count(2))
    return name if name not in taken else next(each for each in free if each not in taken)


def offered(name: str, own: Any) -> dict[str, Any]:
    """Policies or normalisers of one's own for the list of a field, by their labels.

    Args:
        name: "policy" or "normaliser".
        own: a list of objects, which their own names stand for, or a dict with names; None for none.

    Raises:
        SinkscopeError: an object that is no such thing, or a name that is taken.
    """
    kind: type = {"policy": Policy, "normaliser": Normaliser}[name]
    known = CONTROLS[name].values  # type: ignore[attr-defined]
    label_of = CONTROLS[name].label_of  # type: ignore[attr-defined]
    if isinstance(own, (kind, str, bytes)) or not isinstance(own, (Mapping, Iterable, type(None))):
        raise SinkscopeError(f"{own!r} is no list; give the {name} in one: [{name}], or a dict with names.")
    pairs = list(own.items()) if isinstance(own, Mapping) else [(None, each) for each in own or ()]
    found: dict[str, Any] = {}
    for label, each in pairs:
        _check_slot(name, each, kind, {})
        if label is None:
            label = _untaken(label_of(each), {*known, *found})
        if not isinstance(label, str) or not label.strip() or label in found or label in known:
            raise SinkscopeError(f"{label!r} is no name of its own for a {name} in the list; give another.")
        found[visible(label, spaces=False)] = each
    return found


def _check_slot(name: str, value: object, kind: type, known: Mapping[str, Any]) -> None:
    if isinstance(value, kind) or (isinstance(value, str) and value in known):
        return
    asked = f"{name}={value!r}"
    if isinstance(value, str) and known:
        raise SinkscopeError(f"{asked} is unknown; give one of {', '.join(known)}, or an object.")
    listed = f"one of {', '.join(known)}, or " if known else ""
    instance = f"an instance, such as {value.__name__}(), or " if isinstance(value, type) else listed
    raise SinkscopeError(f"{asked} is no {name}; give {instance}an object of a class of {kind.__name__}.")
