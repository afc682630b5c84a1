"""A small decoder whose attention can have any normaliser, and the arms of a comparison of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from sinkscope.arguments import several, whole_number
from sinkscope.errors import SinkscopeError, shown
from sinkscope.normalisers import ClippedSoftmax, LearnedSink, Normaliser, ReLU, Sigmoid, Softmax, Softmax1, Softpick


@dataclass(frozen=True)
class Arm:
    """One way to train.

    >>> lab.Arm("softmax off by one", sinkscope.Softmax1()).name
    'softmax off by one'

    Attributes:
        name: what tables and figures call it.
        normaliser: how scores become weights.
        has_sink_logit: whether one logit per head is trained with the rest, as the normaliser `LearnedSink`.
        has_sink_token: whether a learned token stands in front of everything.
        has_gate: whether the output of each head is multiplied by a gate before W_O, ``sigmoid(X W)`` for each of its
            dimensions, of the states X that attention reads (Qiu et al. 2025, "Gated attention", arXiv 2505.06708).
    """

    name: str
    normaliser: Normaliser = Softmax()  # noqa: RUF009 - frozen
    has_sink_logit: bool = False
    has_sink_token: bool = False
    has_gate: bool = False


ARMS = (
    Arm("softmax"),
    Arm("softmax1", Softmax1()),
    Arm("learned sink", has_sink_logit=True),
    Arm("clipped softmax", ClippedSoftmax(gamma=-0.03, zeta=1.0)),  # the choice of Bondarenko et al. 2023
    Arm("sigmoid", Sigmoid()),
    Arm("relu", ReLU()),
    Arm("sink token", has_sink_token=True),
    Arm("softpick", Softpick()),
    Arm("gated", has_gate=True),
)
"""The ways to train that the laboratory compares, unless others are named.

>>> [arm.name for arm in lab.ARMS[:3]]
['softmax', 'softmax1', 'learned sink']
"""

NAMES = tuple(arm.name for arm in ARMS)


def arms_of(given: str | Arm | Iterable[str | Arm]) -> list[Arm]:
    """The arms that are named, and those given as they are, each once; SinkscopeError for what is no arm."""
    known = dict(zip(NAMES, ARMS, strict=True))
    asked = several(given, "arms")
    unknown = [each for each in asked if not isinstance(each, Arm) and not (isinstance(each, str) and each in known)]
    if unknown:
        raise SinkscopeError(f"{shown(unknown[0])} is no arm; give any of {', '.join(NAMES)}.")
    arms = list(dict.fromkeys(each if isinstance(each, Arm) else known[each] for each in asked))
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise SinkscopeError("no arm was given, or two of one name; give one or more, each with a name of its own.")
    for arm in arms:
        if not isinstance(arm.normaliser, Normaliser):
            raise SinkscopeError(
                f"the normaliser of the arm {arm.name!r} is {arm.normaliser!r}; give an instance of a class of "
                "normalisers, such as sinkscope.Softmax1()."
            )
    return arms


@dataclass(frozen=True)
class Sizes:
    """Of a model: `length` tokens at most, the learned sink token apart."""

    vocabulary: int
    length: int
    layers: int
    heads: int
    width: int

    @classmethod
    def of(cls, vocabulary: int, length: int, layers: int, heads: int, width: int, even: bool = False) -> Sizes:
        """The sizes; SinkscopeError for a width that heads cannot share; `even`, in pairs for rotary positions."""
        for name, value in {"layers": layers, "heads": heads, "width": width}.items():
            whole_number(value, name, 1)
        if width % (heads * (1 + even)):
            raise SinkscopeError(
                f"width={width} cannot be shared among heads={heads}: give a multiple of {heads * (1 + even)}."
            )
        return cls(vocabulary, length, layers, heads, width)


class Trace(NamedTuple):
    """One layer of a forward pass; the learned sink token, where there is one, is the first token."""

    weights: Tensor  # [batch, head, query, key]
    values: Tensor  # [batch, head, key, dim]
    hidden: Tensor  # [batch, token, width], behind the layer
    gates: Tensor  # [batch, head, query], means over the head's dimensions; 1 without a gate


def causal_weights(query: Tensor, key: Tensor, scale: float, normaliser: Normaliser) -> Tensor:
    """Weights [.., query, key] of queries and keys [.., token, dim], each query over the keys up to its own."""
    scores = query @ key.mT * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return normaliser.weights(scores.masked_fill(later, -torch.inf))


class Attention(nn.Module):
    """Causal attention with explicit weights, since this is where they are looked at."""

    def __init__(self, sizes: Sizes, arm: Arm) -> None:
        super().__init__()
        self.heads, self.arm = sizes.heads, arm
        self.enter = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.leave = nn.Linear(sizes.width, sizes.width, bias=False)
        if arm.has_sink_logit:
            self.sink_logit = nn.Parameter(torch.zeros(sizes.heads))  # begins as softmax1
        self.gate: nn.Linear | None = None

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, value = rearrange(
            self.enter(states), "batch token (slot head dim) -> slot batch head token dim", slot=3, head=self.heads
        )
        normaliser = LearnedSink(self.sink_logit) if self.arm.has_sink_logit else self.arm.normaliser
        weights = causal_weights(query, key, query.shape[-1] ** -0.5, normaliser)
        output = rearrange(weights @ value, "batch head token dim -> batch token (head dim)")
        if self.gate is None:
            return self.leave(output), weights, value, weights.new_ones(weights.shape[:3])
        gate = self.gate(states).sigmoid()
        means = gate.unflatten(-1, (self.heads, -1)).mean(-1).transpose(1, 2)
        return self.leave(output * gate), weights, value, means


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a residual."""

    def __init__(self, sizes: Sizes, arm: Arm) -> None:
        super().__init__()
        self.before_attention, self.before_perceptron = nn.RMSNorm(sizes.width), nn.RMSNorm(sizes.width)
        self.attention = Attention(sizes, arm)
        self.perceptron = nn.Sequential(
            nn.Linear(sizes.width, 4 * sizes.width), nn.GELU(), nn.Linear(4 * sizes.width, sizes.width)
        )

    def forward(self, hidden: Tensor) -> Trace:
        output, weights, values, gates = self.attention(self.before_attention(hidden))
        hidden = hidden + output
        return Trace(weights, values, hidden + self.perceptron(self.before_perceptron(hidden)), gates)


class Decoder(nn.Module):
    """One to three layers over learned positions."""

    def __init__(self, sizes: Sizes, arm: Arm) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position = nn.Parameter(0.02 * torch.randn(sizes.length, sizes.width))
        layers = [Layer(sizes, arm) for _ in range(sizes.layers)]
        self.layers = nn.ModuleList(layers)
        self.before_head = nn.RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        # last, so that arms begin alike
        self.sink_token = nn.Parameter(torch.randn(sizes.width)) if arm.has_sink_token else None
        for layer in layers if arm.has_gate else ():
            layer.attention.gate = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Trace]]:
        """Logits [batch, token, next] for ids [batch, token], and what went on in each layer."""
        hidden = self.embedding(ids) + self.position[: ids.shape[1]]
        if self.sink_token is not None:
            hidden = torch.cat([self.sink_token.expand(len(ids), 1, -1), hidden], 1)
        traces = []
        for layer in self.layers:
            traces.append(layer(hidden))
            hidden = traces[-1].hidden
        return self.head(self.before_head(hidden[:, hidden.shape[1] - ids.shape[1] :])), traces
