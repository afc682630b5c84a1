"""How many keys a query sees under a policy and how many tokens are kept, counted over a whole text.

T tokens read, t = 0 .. T-1       query t sees               kept after it
no limit                          t + 1                      t + 1
window or sinks + window, L kept  min(t, L) + 1              min(t + 1, L)
scored, L kept, chunks of c       min(t - t % c, L) + t % c + 1
the model's own window w          min(t + 1, w)              min(t + 1, w - 1)
re-computation of L               min(t + 1, L), and so do the L - 1 tokens run with it, each its own past
another policy                    as its `sees` says         t + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sinkscope.core.policies import Policy, ScoredPolicy, StaticPolicy
from sinkscope.errors import SinkscopeError

ENTRIES = 1 << 24  # pairs of a query and a key that are looked at together


@dataclass(frozen=True)
class Span:
    """What a policy leaves one layer.

    Attributes:
        seen: most keys that a query sees, itself included; None without a limit.
        kept: most tokens that stay in the cache between two steps; None without a limit.
        policy: the policy whose own rule says which keys are seen; None where `seen` is all there is to it.
    """

    seen: int | None
    kept: int | None
    policy: StaticPolicy | ScoredPolicy | None = None

    def pairs(self, tokens: int) -> int:
        """Pairs of a query and a key that it sees in a text."""
        if isinstance(self.policy, ScoredPolicy):
            return sum(_scored_keys(self.policy, query) for query in range(tokens))
        return pairs(tokens, self.seen) if self.policy is None else _visible_pairs(self.policy, 0, tokens)

    def last(self, tokens: int) -> int:
        """Keys that the last query of a text sees."""
        if isinstance(self.policy, ScoredPolicy):
            return _scored_keys(self.policy, tokens - 1)
        if self.policy is None:
            return at_most(tokens, self.seen)
        return _visible_pairs(self.policy, tokens - 1, tokens)


def spans(policy: Policy, windows: Sequence[int | None]) -> list[Span]:
    """The span of every layer under a policy.

    Where layers with a native window and full ones are mixed, the former keep their own under every policy. Where
    every layer slides, the policy takes the place of the window, but for dense and for re-computation, which run the
    model as it is (as in `sinkscope.core.policy_on_layers`).

    Args:
        policy: the policy.
        windows: each layer's native window in tokens, the token being read included; None for full layers.

    Raises:
        SinkscopeError: a policy that acts in some layers or heads only, or one whose rule cannot be counted.
    """
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


def _scored_keys(policy: ScoredPolicy, query: int) -> int:
    """Keys that a query sees: those held before its chunk, and its chunk up to itself."""
    inside = query % policy.chunk
    return min(query - inside, policy.budget) + inside + 1


def _visible_pairs(policy: StaticPolicy, first: int, last: int) -> int:
    """Pairs that a policy's own rule lets through, for queries from `first` on and before `last`."""
    key, total = torch.arange(last), 0
    for query in torch.arange(first, last).split(max(1, ENTRIES // last)):
        seen = policy.sees(query[:, None], key) & (key <= query[:, None])
        total += int(seen.sum())
    return total


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
    each = pairs(size, seen)
    return _summed_pairs(growing, seen) + (tokens - growing) * each


def _summed_pairs(count: int, seen: int | None) -> int:
    """pairs(1) + ... + pairs(count), in closed form."""
    small = at_most(count, seen)
    rest = count - small
    start = pairs(small, seen)
    return small * (small + 1) * (small + 2) // 6 + rest * start + small * rest * (rest + 1) // 2
