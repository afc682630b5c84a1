"""Attention of a block of queries under a policy, exact: each query sees the sinks and its own window.

The keys a query sees are two disjoint sets. Those in its window lie at their true distance, so ordinary attention with
a band for a mask serves them. The sinks lie at a distance of ``min(t, S + W) - s`` in the cache, which turning the
query back by what was evicted gives. The two parts are merged through their log-sum-exp. A token's keys and values
depend on nothing but what it saw, so blocks of any size give what one token at a time gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.core.attend import attend
from sinkscope.core.eviction import Eviction
from sinkscope.core.masks import BandMask, CausalMask, FullMask
from sinkscope.core.merge import merge


def attend_evicted(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    eviction: Eviction,
    start: int,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the queries at positions `start`, `start + 1`, ... over the sinks and their windows.

    Args:
        query: [batch, head, query, dim].
        key, value: [batch, kv_head, key, dim]; first the sinks, then neighbours up to the last query, as far back as
            the first query's window at least.
        eviction: what is kept.
        start: position of the first query.

    Returns:
        Output and lse as `attend` gives them.
    """
    sinks, rows = min(eviction.sinks, key.shape[2]), query.shape[2]
    whole = min(rows, max(0, eviction.sinks + eviction.window + 1 - start))  # queries for which nothing is evicted
    options = {"scale": scale, "softcap": softcap}
    parts = []
    if whole:
        parts.append(attend(query[:, :, :whole], key, value, CausalMask(start), **options))
    if whole < rows:
        late = query[:, :, whole:]
        past = key.shape[2] - sinks - rows + whole  # neighbours before the first late query
        band = attend(late, key[:, :, sinks:], value[:, :, sinks:], BandMask(past, eviction.window), **options)
        if sinks:
            turned = eviction.toward_sinks(late, start + whole)
            band = merge(band, attend(turned, key[:, :, :sinks], value[:, :, :sinks], FullMask(), **options))
        parts.append(band)
    return torch.cat([output for output, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)
