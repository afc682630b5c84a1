"""The policy slot: which keys a query may see, and at what distance.

A policy is data; the attention function and the streaming engine read its fields. Sizes count the tokens a cache keeps
between two steps. The token being read sees them, and itself.

    dense        all tokens                 k k k k k k k k k q
    window       the last 4                 . . . . . k k k k q
    recompute    the last 5, rebuilt        . . . . . r r r r q     r: computed from these five tokens alone
    sink window  the first 1 and last 3     k . . . . . k k k q
    evict        all but chosen keys        k k . k . k k k k q
    evict recent all but the last 3         k k k k k k . . . q
    dose         all, some strengthened     K k k k k k k k k q     K: a bias is added to the logits of this key

Window and re-computation are often mixed up. A *window* keeps the keys and values as they were computed, with the whole
text before them in view; it drops the oldest, and perplexity collapses when the first token goes. *Re-computation*
throws the cache away and runs the last tokens as a text of their own, for every new token: its first token becomes a
sink again, so it works, at a cost of window squared per token (Xiao et al. 2023, Figure 1).
"""

from __future__ import annotations

from sinkscope.core.policies.base import POSITIONS, VALUES, Policy
from sinkscope.core.policies.dense import Dense
from sinkscope.core.policies.keys import Dose, Evict
from sinkscope.core.policies.last_tokens import Recompute, Window
from sinkscope.core.policies.recent import EvictRecent
from sinkscope.core.policies.sink_window import SinkWindow

__all__ = [
    "POSITIONS",
    "VALUES",
    "Dense",
    "Dose",
    "Evict",
    "EvictRecent",
    "Policy",
    "Recompute",
    "SinkWindow",
    "Window",
]
