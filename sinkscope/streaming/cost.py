"""What a policy costs: operations, and bytes of keys and values, from the model's own shapes.

The text is read token by token, as generation does. A layer whose query t sees n(t) keys does

    flops(t) = projections and feed-forward + pair · n(t) + key · n(t)

and re-computation does all of it for each of the min(t + 1, L) tokens it runs afresh; of the output head it needs the
last token only. `pair` and `key` are in `shapes`, n(t) in `spans`. Only matrix products count, two operations for each
multiply-add; turning the sinks to a new position has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import torch

from sinkscope.arguments import several, whole_number
from sinkscope.attention.eviction import SeenEviction
from sinkscope.attention.placement import is_built_in, owner
from sinkscope.errors import SinkscopeError
from sinkscope.models.facts import find_anatomy, model_attributes
from sinkscope.policies import Policy, ScoredPolicy, StaticPolicy
from sinkscope.policies.base import BoundLayer, bound_evictions
from sinkscope.streaming.shapes import Shapes, shapes_of

ENTRIES = 1 << 24  # pairs of a query and a key that are looked at together


@dataclass(frozen=True)
class Span:
    """What a policy leaves one layer, in tokens; None without a limit."""

    seen: int | None  # most keys that a query sees, itself included
    kept: int | None  # most tokens that stay in the cache between two steps
    policy: StaticPolicy | ScoredPolicy | None = None  # whose own rule says which keys are seen, where `seen` does not

    def pairs(self, tokens: int, since: int = 0) -> int:
        """Pairs of a query and a key that it sees, for the queries of a text from `since` on."""
        policy = self.policy
        if policy is None:
            return pairs(tokens, self.seen) - pairs(since, self.seen)
        if isinstance(policy, ScoredPolicy):  # a query sees the keys held before its chunk, and its chunk up to itself
            inside = ((query, query % policy.chunk) for query in range(since, tokens))
            return sum(min(query - own, policy.budget) + own + 1 for query, own in inside)
        key, rule = torch.arange(tokens), SeenEviction(since=0, policy=policy)
        blocks = torch.arange(since, tokens)[:, None].split(max(1, ENTRIES // max(1, tokens)))
        return sum(int((rule.sees(query, key) & (key <= query)).sum()) for query in blocks)


def spans(policy: Policy, windows: Sequence[int | None]) -> list[Span]:
    """The span of every layer under a policy, by the layers' native windows (None for full layers).

    Where layers with a native window and full ones are mixed, the former keep their own under every policy. Where
    every layer slides, the policy takes the place of the window, but for dense and for re-computation, which run the
    model as it is (as in `sinkscope.scope.binding`).

    Raises:
        SinkscopeError: a policy that acts in some layers or heads only, or one whose rule cannot be counted.
    """
    policy.check()
    if policy.is_partial:
        raise SinkscopeError(
            f"`{policy.name}` acts in some layers or heads only, and a cost is counted for policies that act alike in "
            "all of them."
        )
    return [_span(policy, window, mixed=None in windows) for window in windows]


def _span(policy: Policy, window: int | None, mixed: bool) -> Span:
    native = Span(window, None if window is None else window - 1)
    size = policy.cache_size
    if policy.is_dense or (mixed and window is not None and not policy.recomputed):
        return native
    if policy.recomputed and size is not None:
        return Span(at_most(size, native.seen), at_most(size, native.kept))
    if policy.kept is not None and size is not None:
        return Span(size + 1, size)
    if isinstance(policy, ScoredPolicy):
        return Span(policy.budget + policy.chunk, policy.budget, policy)
    if isinstance(policy, StaticPolicy):
        return Span(None, None, policy)
    raise SinkscopeError(
        f"what `{policy.name}` costs cannot be counted; {type(policy).__name__} has no rule to count by."
    )


def at_most(count: int, limit: int | None) -> int:
    """`count`, or the limit where there is one and it is smaller."""
    return count if limit is None else min(count, limit)


def pairs(tokens: int, seen: int | None) -> int:
    """Pairs of a query and a key it sees in one text: the sum of min(t + 1, seen) over its tokens t."""
    growing = at_most(tokens, seen)
    return growing * (growing + 1) // 2 + (tokens - growing) * growing


def rerun_pairs(tokens: int, size: int, seen: int | None) -> int:
    """The same when the last `size` tokens are run as a text of their own for every token: pairs(min(t + 1, size))."""
    growing = min(tokens, size)
    small = at_most(growing, seen)
    rest = growing - small
    # pairs(1) + ... + pairs(growing), in closed form
    begun = small * (small + 1) * (small + 2) // 6 + rest * pairs(small, seen) + small * rest * (rest + 1) // 2
    return begun + (tokens - growing) * pairs(size, seen)


@dataclass(frozen=True, repr=False)
class Cost:
    """The cost of reading a text under a policy, one sequence.

    >>> cost = sinkscope.cost(model, sinkscope.SinkWindow(2, 14), 64)
    >>> cost.complexity, cost.attention_size
    ('O(T·L)', 17)

    Attributes:
        model: name of the model.
        policy: the policy.
        tokens: T, tokens read.
        attention_size: keys that the last query sees, itself included, in the layers the policy acts on.
        attention_flops_per_token: operations of the last token with keys and values, all layers; where latents are
            cached, also of making the keys and values from them.
        rest_flops_per_token: all other operations of the last token: projections, feed-forward, output head.
        attention_flops, rest_flops: the same over all tokens.
        complexity: how the operations grow with the text: O(T²), O(T·L) or O(T·L²), L being the cache size;
            O(T²), the most there can be, for every rule of one's own.
        kv_bytes: held after the last token.
        kv_bytes_peak: held while it is read, its own key and value included.
        kv_bytes_growth: added by each further token once every bounded layer is full; 0 when all are bounded.
        kv_bytes_mha: as `kv_bytes`, if every query head had its own keys and values.
        kv_bytes_mqa: as `kv_bytes`, if all query heads shared one key and value.
        memory: how the bytes grow with the text: O(T) or O(L).
    """

    model: str
    policy: Policy
    tokens: int
    attention_size: int
    attention_flops_per_token: int
    rest_flops_per_token: int
    attention_flops: int
    rest_flops: int
    complexity: str
    kv_bytes: int
    kv_bytes_peak: int
    kv_bytes_growth: int
    kv_bytes_mha: int
    kv_bytes_mqa: int
    memory: str

    @property
    def flops_per_token(self) -> int:
        """All operations of the last token."""
        return self.attention_flops_per_token + self.rest_flops_per_token

    @property
    def flops(self) -> int:
        """All operations over all tokens."""
        return self.attention_flops + self.rest_flops

    @property
    def saving(self) -> float:
        """How many times smaller the cache is than with keys and values for every query head."""
        return self.kv_bytes_mha / self.kv_bytes if self.kv_bytes else 1.0

    def __repr__(self) -> str:
        return "\n".join([self._title(), *(f"  {label:<16}{text}" for label, text in self._lines())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in self._lines())
        return f"<table><caption>{escape(self._title())}</caption>{rows}</table>"

    def _title(self) -> str:
        return f"{self.model} · {self.policy.name} · {self.tokens:,} tokens"

    def _lines(self) -> list[tuple[str, str]]:
        each, attention = self.flops_per_token, self.attention_flops_per_token
        mha, mqa = (_scaled(count, "B") for count in (self.kv_bytes_mha, self.kv_bytes_mqa))
        growth = f"each further token adds {_scaled(self.kv_bytes_growth, 'B')}" if self.kv_bytes_growth else "bounded"
        return [
            ("attention size", f"{self.attention_size:,} keys"),
            ("last token", f"{_scaled(each, 'FLOP')}, {attention / each:.0%} of it attention"),
            ("all tokens", f"{_scaled(self.flops, 'FLOP')}, {self.complexity}"),
            ("KV memory", f"{_scaled(self.kv_bytes, 'B')}, {self.memory}, {growth}"),
            ("KV heads", f"{mha} with keys for every query head, {mqa} with one shared by all"),
        ]


def cost(model: Any, policy: Policy, tokens: int) -> Cost:
    """What reading `tokens` tokens under a policy costs, one sequence, token by token.

    The model is run on three tokens to find its shapes. A policy acts on a model's layers as in `sinkscope.attached`:
    beside full layers, those with a sliding window of their own keep it.

    >>> policies = sinkscope.Dense(), sinkscope.SinkWindow(2, 14)
    >>> dense, sinks = (sinkscope.cost(model, each, 64) for each in policies)
    >>> dense.kv_bytes // sinks.kv_bytes
    4

    Args:
        model: a loaded transformers decoder; most also work on torch's meta device, without weights.
        policy: any that acts alike in all layers and heads.
        tokens: T, the length of the text, at least 1.

    Raises:
        SinkscopeError: not a policy, or one that acts in some layers or heads only; less than one token; a model that
            keeps no cache.
    """
    return _costs(model, [policy], tokens)[0]


def cost_table(model: Any, policies: Iterable[Policy], tokens: int) -> pd.DataFrame:
    """One row per policy: its name, attention size, operations and bytes, as the attributes of `Cost`.

    Operations are floats, since those of long texts exceed 64 bits. `.attrs` says what model was measured.

    >>> list(sinkscope.cost_table(model, [sinkscope.Dense(), sinkscope.Window(16)], 64))[:3]
    ['policy', 'tokens', 'attention_size']
    """
    table = pd.DataFrame([_row(found) for found in _costs(model, several(policies, "policies"), tokens)])
    table.attrs.update(model_attributes(model), tokens=tokens)
    return table


def _costs(model: Any, policies: list[Policy], tokens: int) -> list[Cost]:
    for policy in policies:
        _check(policy, tokens)
        if policy.kept is not None and not (policy.recomputed or is_built_in(owner(type(policy), "bind"))):
            bound_evictions(policy, BoundLayer(model, 0, find_anatomy(model).numbers[0]))  # which it counts by `kept`
    shapes, name = shapes_of(model), str(model_attributes(model)["model"])
    return [_cost(name, shapes, policy, tokens) for policy in policies]


def _cost(model: str, shapes: Shapes, policy: Policy, tokens: int) -> Cost:
    found = spans(policy, [layer.window for layer in shapes.layers])
    full = [span for span, layer in zip(found, shapes.layers, strict=True) if layer.window is None]
    attention, rest = _flops(shapes, found, policy, tokens)
    attention_before, rest_before = _flops(shapes, found, policy, tokens - 1)
    kept = [at_most(tokens, span.kept) for span in found]
    growing = [int(span.kept is None) for span in found]
    bounded = "O(T·L²)" if policy.recomputed else "O(T·L)"

    def over_layers(quantity: str, held: list[int]) -> int:
        return sum(getattr(layer, quantity) * count for layer, count in zip(shapes.layers, held, strict=True))

    return Cost(
        model=model,
        policy=policy,
        tokens=tokens,
        attention_size=max(span.pairs(tokens, since=tokens - 1) for span in full or found),
        attention_flops_per_token=attention - attention_before,
        rest_flops_per_token=rest - rest_before,
        attention_flops=attention,
        rest_flops=rest,
        complexity="O(T²)" if any(growing) else bounded,
        kv_bytes=over_layers("kv_bytes", kept),
        kv_bytes_peak=over_layers("kv_bytes", [at_most(tokens, span.seen) for span in found]),
        kv_bytes_growth=over_layers("kv_bytes", growing),
        kv_bytes_mha=over_layers("kv_bytes_mha", kept),
        kv_bytes_mqa=over_layers("kv_bytes_mqa", kept),
        memory="O(T)" if any(growing) else "O(L)",
    )


def _flops(shapes: Shapes, found: list[Span], policy: Policy, tokens: int) -> tuple[int, int]:
    """Operations over the first `tokens` tokens: of attention, and of the rest."""
    size = policy.cache_size if policy.recomputed else None
    runs = tokens if size is None else pairs(tokens, size)  # tokens run in all: min(t + 1, size) for each
    attention = 0
    for layer, span in zip(shapes.layers, found, strict=True):
        if size is None:
            seen, remade = span.pairs(tokens), pairs(tokens, span.seen)
        else:
            seen, remade = rerun_pairs(tokens, size, span.seen), runs
        attention += layer.flops_per_pair * seen + layer.flops_per_key * remade
    return attention, shapes.body_flops * runs + (shapes.head_flops + shapes.once_flops) * tokens


def _row(found: Cost) -> dict[str, Any]:
    both = {"flops_per_token": found.flops_per_token, "flops": found.flops}
    row = vars(found) | {"policy": found.policy.name} | both
    return {key: float(value) if "flops" in key else value for key, value in row.items() if key != "model"}


def _check(policy: object, tokens: object) -> None:
    if not isinstance(policy, Policy):
        raise SinkscopeError(f"{policy!r} is not a policy; give an instance such as sinkscope.SinkWindow(4, 1020).")
    whole_number(tokens, "tokens", 1)


def _scaled(count: int, unit: str) -> str:
    """Three digits and a decimal prefix: 47.2 MB."""
    for prefix, size in (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12), ("P", 10**15)):
        if count < 999.5 * size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count / 10**18:,.3g} E{unit}"
