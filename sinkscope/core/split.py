"""Decoding over many keys in chunks (flash-decoding; Dao et al. 2023), exact.

A kernel works on heads and queries in parallel, so the one query of a decoding step leaves most of a machine idle. Cut
into chunks the keys become a batch, every chunk is attended at the same time, and the parts are merged through their
log-sum-exp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.core.attend import attend
from sinkscope.core.masks import FullMask
from sinkscope.core.merge import merge
from sinkscope.errors import SinkscopeError

CHUNK = 2048


def attend_split(
    query: Tensor, key: Tensor, value: Tensor, *, chunk: int = CHUNK, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of queries that see every key, the keys taken in chunks.

    Args:
        query: [batch, head, query, dim]; few, usually one.
        key, value: [batch, kv_head, key, dim].
        chunk: keys in each chunk; the last one may be smaller.
        scale: factor on the scores; dim ** -0.5 when None.

    Returns:
        Output and lse, those of `attend` over all the keys.

    Raises:
        SinkscopeError: chunk < 1, or shapes that do not fit together.
    """
    if chunk < 1:
        raise SinkscopeError(f"chunk is {chunk}, but it is a number of keys: give 1 or more.")
    count = key.shape[2] // chunk
    if count < 2:
        return attend(query, key, value, FullMask(), scale=scale)
    rows = [
        _chunked(*row, count, chunk, scale) for row in zip(query.split(1), key.split(1), value.split(1), strict=True)
    ]
    parts = (torch.cat([output for output, _ in rows]), torch.cat([lse for _, lse in rows]))
    if key.shape[2] == count * chunk:
        return parts
    return merge(
        parts, attend(query, key[:, :, count * chunk :], value[:, :, count * chunk :], FullMask(), scale=scale)
    )


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, count: int, chunk: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    """One sequence: its chunks as a batch, without copying a key."""
    keys, values = (state[0, :, : count * chunk].unflatten(1, (count, chunk)).transpose(0, 1) for state in (key, value))
    output, lse = attend(query.expand(count, -1, -1, -1), keys, values, FullMask(), scale=scale)
    return merge(*zip(output[:, None], lse[:, None], strict=True))
