"""How many keys a query sees under a policy and how many tokens are kept, counted over a whole text.

T tokens read, t = 0 .. T-1       query t sees               kept after it
no limit                          t + 1                      t + 1
window or sinks + window, L kept  min(t, L) + 1              min(t + 1, L)
the model's own window w          min(t + 1, w)              min(t + 1, w - 1)
re-computation of L               min(t + 1, L), and so do the L - 1 tokens run with it, each its own past
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sinkscope.core.policies import Policy


@dataclass(frozen=True)
class Span:
    """What a policy leaves one layer.

    Attributes:
        seen: most keys that a query sees, itself included; None without a limit.
        kept: most tokens that stay in the cache between two steps; None without a limit.
    """

    seen: int | None
    kept: int | None


def spans(policy: Policy, windows: Sequence[int | None]) -> list[Span]:
    """The span of every layer under a policy.

    Where layers with a native window and full ones are mixed, the former keep their own under every policy. Where
    every layer slides, the policy takes the place of the window, but for dense and for re-computation, which run the
    model as it is (as in `sinkscope.core.policy_on_layers`).

    Args:
        policy: the policy.
        windows: each layer's native window in tokens, the token being read included; None for full layers.
    """
    return [_span(policy, window, mixed=None in windows) for window in windows]


def _span(policy: Policy, window: int | None, mixed: bool) -> Span:
    native = Span(window, None if window is None else window - 1)
    size = policy.cache_size
    if size is None or (mixed and window is not None and not policy.recomputed):
        return native
    if not policy.recomputed:
        return Span(size + 1, size)
    return Span(at_most(size, native.seen), at_most(size, native.kept))


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
