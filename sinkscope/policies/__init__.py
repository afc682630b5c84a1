"""The policy slot: which keys a query may see, and at what distance.

Sizes count the tokens a cache keeps between two steps. The token being read sees them, and itself.

    dense        all tokens                 k k k k k k k k k q
    window       the last 4                 . . . . . k k k k q
    recompute    the last 5, rebuilt        . . . . . r r r r q     r: computed from these five tokens alone
    sink window  the first 1 and last 3     k . . . . . k k k q
    evict        all but chosen keys        k k . k . k k k k q
    evict recent all but the last 3         k k k k k k . . . q
    dose         all, some strengthened     K k k k k k k k k q     K: a bias is added to the logits of this key
    every nth    each 3rd, and the last 2   k . . k . . k k k q
    chunks       those of one's own chunk   . . . . . . k k k q
    H2O, TOVA    those attended to most     k . k . . . k . k q     chosen by the model's own attention
    per head     one of these in each head

Window and re-computation are often mixed up. A *window* keeps the keys and values as they were computed, with the whole
text before them in view; it drops the oldest, and perplexity collapses when the first token goes. *Re-computation*
throws the cache away and runs the last tokens as a text of their own, for every new token: its first token becomes a
sink again, so it works, at a cost of window squared per token (Xiao et al. 2023, Figure 1).
"""

from sinkscope.policies.base import POSITIONS, VALUES, Kept, Policy
from sinkscope.policies.chosen import Dose, Evict, EvictRecent
from sinkscope.policies.chunks import Chunks
from sinkscope.policies.every_nth import EveryNth
from sinkscope.policies.per_head import PerHead
from sinkscope.policies.scored import TOVA, HeavyHitters, ScoredPolicy
from sinkscope.policies.static import Dense, Recompute, SinkWindow, StaticPolicy, Window

__all__ = [
    "POSITIONS",
    "TOVA",
    "VALUES",
    "Chunks",
    "Dense",
    "Dose",
    "Evict",
    "EvictRecent",
    "EveryNth",
    "HeavyHitters",
    "Kept",
    "PerHead",
    "Policy",
    "Recompute",
    "ScoredPolicy",
    "SinkWindow",
    "StaticPolicy",
    "Window",
]
