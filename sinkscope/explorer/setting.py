"""What the controls say: one value that is a policy, a normaliser and a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sinkscope.core.normalisers import ClippedSoftmax, LearnedSink, Normaliser, ReLU, Sigmoid, Softmax, Softmax1
from sinkscope.core.policies import Dense, Dose, Evict, Policy, Recompute, SinkWindow, Window
from sinkscope.errors import SinkscopeError

KINDS = {
    "dense": "dense",
    "window": "window",
    "recompute": "re-computed",
    "sinks": "sinks + window",
    "chosen": "chosen tokens",
}
OWN = "the model's own"
NORMALISERS: dict[str, Normaliser | None] = {
    OWN: None,
    "softmax": Softmax(),
    "softmax1": Softmax1(),
    "learned sink, logit 0": LearnedSink(0.0),
    "clipped softmax": ClippedSoftmax(),
    "sigmoid": Sigmoid(),
    "ReLU": ReLU(),
}
GONE = -math.inf
MOST_SINKS = 16


@dataclass(frozen=True)
class Setting:
    """How the model is to attend.

    Attributes:
        kind: one of `KINDS`.
        sinks: first tokens that are kept beside a window, or that the dose acts on.
        window: last tokens that are kept.
        evicted: places of the tokens taken away, none before it has been read.
        since: the first query that does not see them. From the start on another token would grow into the sink.
        dose: added to the logits of the sinks; minus infinity evicts them.
        positions: "cache" or "original", as in `SinkWindow`.
        normaliser: one of `NORMALISERS`.
        layers: the first and the last layer that policy and normaliser act in; all when None.

    Raises:
        SinkscopeError: a kind or a normaliser that there is not.
    """

    kind: str = "dense"
    sinks: int = 4
    window: int = 128
    evicted: tuple[int, ...] = ()
    since: int = 64
    dose: float = 0.0
    positions: str = "cache"
    normaliser: str = OWN
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for field, value, known in (("kind", self.kind, KINDS), ("normaliser", self.normaliser, NORMALISERS)):
            if value not in known:
                raise SinkscopeError(f"{field}={value!r} is unknown; give one of {', '.join(known)}.")

    @classmethod
    def of_text(cls, length: int) -> Setting:
        """The model as it is, with sizes at hand that mean something in a text of `length` tokens."""
        since = max(1, min(cls.since, 2 * length // 3))
        return cls(sinks=min(cls.sinks, length), window=min(cls.window, length), since=since)

    @property
    def policy(self) -> Policy:
        """The policy slot.

        Raises:
            SinkscopeError: sizes that no cache can have.
        """
        layers = self._layers
        if self.kind == "window":
            return Window(self.window, layers=layers)
        if self.kind == "recompute":
            return Recompute(self.window)
        if self.kind == "sinks":
            if self.window < self.sinks:
                raise SinkscopeError(
                    f"a window of {self.window} is smaller than the {self.sinks} sinks beside it; "
                    "choose a larger window or fewer sinks."
                )
            return SinkWindow(
                self.sinks, self.window, self.positions, bias=self.dose if self.sinks else 0.0, layers=layers
            )
        if self.kind == "chosen" and self.evicted:
            return Evict(self.evicted, start=self.since, once_read=True, layers=layers)
        if self.kind == "dense" and self.dose and self.sinks:
            return Dose(self.dose, range(self.sinks), layers=layers)
        return Dense()

    @property
    def weights(self) -> Normaliser | None:
        """The normaliser slot; None for the model's own."""
        chosen = NORMALISERS[self.normaliser]
        return None if chosen is None else replace(chosen, layers=self._layers)

    @property
    def name(self) -> str:
        """What the model does, in a few words."""
        changed = "" if self.weights is None else ", ".join(filter(None, [self.normaliser, self.weights.place]))
        return "; ".join(filter(None, [self.policy.name, changed]))

    @property
    def is_baseline(self) -> bool:
        """Whether it leaves the model as it is."""
        return self.policy.is_dense and self.weights is None

    @property
    def uses(self) -> set[str]:
        """The fields that matter under this kind of policy; other controls are at rest."""
        of_kind = {
            "dense": {"sinks", "dose"},
            "window": {"window"},
            "recompute": {"window"},
            "sinks": {"sinks", "window", "dose", "positions"},
            "chosen": {"evicted", "since"},
        }
        return of_kind[self.kind] | {"normaliser"} | (set() if self.kind == "recompute" else {"layers"})

    def check(self, length: int) -> None:
        """Raise SinkscopeError when a text of `length` tokens cannot be read like this."""
        policy = self.policy
        evicted = policy.keys if isinstance(policy, Evict) else ()
        outside = [key for key in evicted if not 0 <= key < length]
        if outside:
            raise SinkscopeError(f"token {outside[0]} cannot be evicted: the text has tokens 0 to {length - 1}.")
        if evicted and self.since >= length:
            raise SinkscopeError(
                f"tokens are evicted from query {self.since} on, but the last query is {length - 1}; choose an earlier "
                "one."
            )
        if len(evicted) >= length:
            raise SinkscopeError(
                f"all {length} tokens are evicted, so every query would see only itself; give one of them back."
            )

    @property
    def _layers(self) -> tuple[int, ...] | None:
        if self.layers is None or self.kind == "recompute":  # which runs whole windows afresh
            return None
        return tuple(range(self.layers[0], self.layers[1] + 1))
