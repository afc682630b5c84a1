"""Attention together with the log-sum-exp of its scores.

For a query `q` over keys `k` the log-sum-exp is ``lse = log(sum_j exp(score_j))``. With it in hand every single
probability is ``exp(score_j - lse)``, and attentions over disjoint sets of keys can be merged exactly (the identity
behind flash-decoding), so nothing ever needs the T x T matrix of probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sinkscope.attention.kernels import Kernel, fused_kernel
from sinkscope.attention.masks import BandMask, CausalMask, FullMask, Mask, additive, ranges
from sinkscope.errors import SinkscopeError


def merge(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join attentions of the same queries over disjoint sets of keys, exactly.

    Args:
        parts: pairs (output [batch, head, query, dim], lse [batch, head, query]).

    Returns:
        The output and lse of attention over all the keys together: the outputs weighted by ``softmax`` of their lse.
    """
    if not parts:
        raise SinkscopeError("there is nothing to merge; give at least one pair (output, lse).")
    lses = torch.stack([lse for _, lse in parts])
    total = lses.logsumexp(0)
    weights = (lses - total).exp()
    dtype = parts[0][0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    output = parts[0][0].to(wide) * weights[0, ..., None]
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        output = output.addcmul_(part.to(wide), weight[..., None])  # one pass over each part
    return output.to(dtype), total


def attend_band(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: BandMask, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention under a band, with a fused kernel; shapes and returns as those of `attend`."""
    rows, early = query.shape[2], max(0, mask.window - mask.past)  # before `early` nothing has left the window
    tiles = ranges(0, min(rows, early), mask.window) + ranges(min(rows, early), rows, mask.window)
    parts = [_tile(kernel, query[:, :, tile], key, value, mask, tile.start, scale) for tile in tiles]
    return torch.cat([output for output, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _tile(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: BandMask, row: int, scale: float
) -> tuple[Tensor, Tensor]:
    own, rows = row + mask.past, query.shape[2]  # column of the first query
    last = slice(own, own + rows)
    parts = [kernel(query, key[:, :, last], value[:, :, last], scale, True, None)]
    edge = slice(max(0, own - mask.window), max(0, own - mask.window + rows))
    if own >= mask.window:
        output, lse = kernel(query.flip(2), key[:, :, edge].flip(2), value[:, :, edge].flip(2), scale, True, None)
        parts.append((output.flip(2), lse.flip(2)))
        middle = slice(edge.stop, own)
    else:
        middle = slice(0, own)
    if middle.stop > middle.start:
        parts.append(kernel(query, key[:, :, middle], value[:, :, middle], scale, False, None))
    return merge(*parts)


BLOCK_ENTRIES = 1 << 22  # scores held at once by the blockwise path
GROUPED = "batch (kv_head group) query last -> batch kv_head group query last"  # beside the key head they share
WIDE_BAND = 64  # columns from which a band is cheaper in triangles than under a mask
FUSED_ROWS = 256  # queries per fused call where a mask has to be given


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp, without a T x T tensor.

    Args:
        query: [batch, head, query, dim].
        key: [batch, kv_head, key, dim]; kv_head divides head (grouped and multi-query heads).
        value: [batch, kv_head, key, value_dim].
        mask: which keys each query sees; causal and aligned at the end when None.
        scale: factor on the scores; dim ** -0.5 when None.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2).

    Returns:
        output [batch, head, query, value_dim] in the query's dtype, and lse [batch, head, query] in float32,
        natural logarithm. A query that sees no key gets an lse near the lowest float and an output to ignore.

    Raises:
        SinkscopeError: shapes that do not fit together.
    """
    _check_shapes(query, key, value)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if mask is None:
        if key.shape[2] < query.shape[2]:
            raise SinkscopeError(
                f"{query.shape[2]} queries and {key.shape[2]} keys cannot be aligned at their ends; give a mask."
            )
        mask = CausalMask(key.shape[2] - query.shape[2])
    kernel = None if softcap is not None else fused_kernel(query.device.type, query.dtype)
    if isinstance(mask, CausalMask):  # a static cache hands over room that is not filled yet
        key, value = (state[:, :, : mask.past + query.shape[2]] for state in (key, value))
    if kernel is None or _wants_gradient(query, key, value):
        return _blockwise(query, key, value, mask, scale, softcap)
    if isinstance(mask, FullMask) or (isinstance(mask, CausalMask) and query.shape[2] == 1):
        return _all_seen(kernel, query, key, value, scale)
    if isinstance(mask, CausalMask):
        past = mask.past
        new = kernel(query, key[:, :, past:], value[:, :, past:], scale, True, None)
        if past == 0:
            return new
        return merge(kernel(query, key[:, :, :past], value[:, :, :past], scale, False, None), new)
    if isinstance(mask, BandMask) and mask.window >= WIDE_BAND:
        return attend_band(kernel, query, key, value, mask, scale)
    parts = []
    for rows in ranges(0, query.shape[2], FUSED_ROWS):
        seen = mask.columns(rows, key.shape[2])
        bias = additive(mask, rows, seen, query)
        parts.append(kernel(query[:, :, rows], key[:, :, seen], value[:, :, seen], scale, False, bias))
    return torch.cat([output for output, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _all_seen(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of queries that see every key: heads that share their keys go as more queries, and read them once."""
    rows, shared = query.shape[2], {"kv_head": key.shape[1]}
    folded = rearrange(query, "batch (kv_head group) query dim -> batch kv_head (group query) dim", **shared)
    output, lse = kernel(folded, key, value, scale, False, None)
    output = rearrange(output, "batch kv_head (group query) dim -> batch (kv_head group) query dim", query=rows)
    return output, rearrange(lse, "batch kv_head (group query) -> batch (kv_head group) query", query=rows)


def scores_of(
    query: Tensor, key: Tensor, mask: Mask, rows: slice, columns: slice, scale: float, softcap: float | None
) -> Tensor:
    """Scores [batch, head, rows, columns] of a block in float32, hidden entries at the lowest float."""
    queries = rearrange(query[:, :, rows], GROUPED, kv_head=key.shape[1]).float() * scale
    scores = queries @ key[:, :, None, columns].float().mT
    scores = rearrange(scores, "batch kv_head group query key -> batch (kv_head group) query key")
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask.hide(scores, rows, columns)
    return scores


def _blockwise(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The reference path: any device, soft-capped scores, gradients for output and lse."""

    def block(query: Tensor, key: Tensor, value: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        with torch.autocast(query.device.type, enabled=False):
            return in_float32(query, key, value, rows, columns)

    def in_float32(query: Tensor, key: Tensor, value: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        scores = scores_of(query, key, mask, rows, columns, scale, softcap)
        lse = scores.logsumexp(-1)
        weights = rearrange((scores - lse[..., None]).exp(), GROUPED, kv_head=key.shape[1])
        output = weights @ value[:, :, None, columns].float()
        output = rearrange(output, "batch kv_head group query dim -> batch (kv_head group) query dim")
        return output.to(query.dtype), lse

    gradient = _wants_gradient(query, key, value)
    step = max(1, BLOCK_ENTRIES // (query.shape[0] * query.shape[1] * key.shape[2]))
    parts = []
    for rows in ranges(0, query.shape[2], step):
        columns = mask.columns(rows, key.shape[2])
        if gradient:  # keep no block's weights for the backward pass: they would add up to T x T
            parts.append(checkpoint(block, query, key, value, rows, columns, use_reentrant=False))
        else:
            parts.append(block(query, key, value, rows, columns))
    return torch.cat([output for output, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    """The kernels read what they are told to: shapes that do not fit would have them read outside their tensors."""
    shapes = [tuple(state.shape) for state in (query, key, value)]
    fit = (
        all(len(shape) == 4 for shape in shapes)
        and query.shape[0] == key.shape[0] == value.shape[0]
        and key.shape[1] == value.shape[1]
        and query.shape[1] % key.shape[1] == 0
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3]
    )
    if not fit:
        raise SinkscopeError(
            f"query, key and value have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; expected [batch, head, query, "
            "dim], [batch, kv_head, key, dim] and [batch, kv_head, key, value_dim], with heads a multiple of kv_heads."
        )


class KeySet(NamedTuple):
    """Keys, and the queries as these keys see them.

    Attributes:
        query: [batch, head, query, dim].
        key, value: [batch, kv_head, key, dim].
        mask: which of the keys each query sees.
        bias: added to the logits of all of them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    bias: float = 0.0

    def attended(self, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attention of the queries over this set alone, and its log-sum-exp."""
        output, lse = attend(self.query, self.key, self.value, self.mask, scale=scale, softcap=softcap)
        return output, lse + self.bias if self.bias else lse


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
