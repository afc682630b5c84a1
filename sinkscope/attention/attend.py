"""Attention together with the log-sum-exp of its scores.

For a query `q` over keys `k` the log-sum-exp is ``lse = log(sum_j exp(score_j))``. With it in hand every single
probability is ``exp(score_j - lse)``, and attentions over disjoint sets of keys can be merged exactly (the identity
behind flash-decoding), so nothing ever needs the T x T matrix of probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import NoneType

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sinkscope.arguments import finite_number, whole_number
from sinkscope.attention.masks import BandMask, CausalMask, FullMask, Mask, ranges, weights_of
from sinkscope.errors import SinkscopeError, shown


def merge(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join attentions of the same queries over disjoint sets of keys, exactly.

    >>> parts = [sinkscope.attend_split(query, key[:, :, cut], value[:, :, cut]) for cut in (slice(3), slice(3, 8))]
    >>> out, lse = sinkscope.merge(*parts)

    Args:
        parts: pairs (output [batch, head, query, dim], lse [batch, head, query]).

    Returns:
        The output and lse of attention over all the keys together: the outputs weighted by ``softmax`` of their lse.
    """
    if not parts:
        raise SinkscopeError("there is nothing to merge; give at least one pair (output, lse).")
    for pair in parts:
        if not (isinstance(pair, (tuple, list)) and [getattr(each, "ndim", None) for each in pair] == [4, 3]):
            raise SinkscopeError(
                f"a part to merge is {shown(pair)}; give pairs (output [batch, head, query, dim], lse [batch, head, "
                "query])."
            )
    if len({(output.shape, lse.shape, output.device, lse.device) for output, lse in parts}) > 1:
        raise SinkscopeError("the parts to merge have different shapes or devices; give those of the same queries.")
    if parts[0][0].shape[:3] != parts[0][1].shape:
        raise SinkscopeError(
            f"an output of shape {tuple(parts[0][0].shape)} has no lse of shape {tuple(parts[0][1].shape)}; give that "
            "of its own queries."
        )
    lses = torch.stack([lse for _, lse in parts])
    total = lses.logsumexp(0)
    weights = (lses - total).exp()
    dtype = parts[0][0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    output = parts[0][0].to(wide) * weights[0, ..., None]
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        output = output.addcmul_(part.to(wide), weight[..., None])  # one pass over each part
    return output.to(dtype), total


# torch's fused kernels return the log-sum-exp as operators behind `scaled_dot_product_attention`. They are no part of
# its documented interface, so each is checked against a plain softmax before its first use on a device and dtype.

Kernel = Callable[[Tensor, Tensor, Tensor, float, bool, Tensor | None], tuple[Tensor, Tensor]]
"""(query, key, value, scale, causal, bias) -> (output, float32 lse); causal needs as many queries as keys."""


def _flash_cpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch's flash attention for the CPU, which in half precision takes two queries in half the time of one."""
    rows, value_dim = query.shape[2], value.shape[-1]
    if rows == 1 and query.dtype.itemsize < 4:
        query = query.expand(-1, -1, 2, -1)
        bias = None if bias is None else bias.expand(-1, -1, 2, -1)
    width = max(query.shape[-1], value_dim)  # one width for all three: MLA has narrower values
    query, key, value = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (query, key, value))
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal and rows > 1, attn_mask=bias, scale=scale
    )
    return output[:, :, :rows, :value_dim], lse[:, :, :rows].float()


def _efficient_cuda(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch's memory-efficient attention for CUDA."""
    group = query.shape[1] // key.shape[1]
    key, value = (
        repeat(t, "batch kv_head key dim -> batch (kv_head group) key dim", group=group) for t in (key, value)
    )
    if bias is not None:  # the kernel wants rows aligned to 16 bytes
        rows, columns = query.shape[2], key.shape[2]
        padded = F.pad(bias, (0, -columns % 8))[..., :columns]
        bias = padded.expand(query.shape[0], query.shape[1], rows, columns)
    output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return output, lse[:, :, : query.shape[2]].float()


KERNELS: dict[str, Kernel] = {"cpu": _flash_cpu, "cuda": _efficient_cuda}


@lru_cache
def fused_kernel(device: str, dtype: torch.dtype) -> Kernel | None:
    """The fused kernel of a device type for a dtype; None, with one warning, where it fails or disagrees."""
    kernel, fault = KERNELS.get(device), None
    if kernel is None or (dtype == torch.float64 and device == "cuda"):
        return None
    try:
        error = _disagreement(kernel, device, dtype)
        if not error < 1:
            fault = (
                f"torch's fused attention on {device} in {dtype} misses its tolerance {error:.1f} times over in a "
                "self-check"
            )
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as problem:
        fault = f"no fused attention with log-sum-exp for {dtype} on {device} ({problem})"
    if fault is None:
        return kernel
    warnings.warn(f"{fault}; sinkscope computes blockwise, which is slower", stacklevel=2)
    return None


@torch.no_grad()
def _disagreement(kernel: Kernel, device: str, dtype: torch.dtype) -> float:
    """Largest error of a kernel on small cases (causal, full, biased, one query), 1 being what is tolerated.

    An output is rounded to its dtype; an lse is formed in float32, from half-precision products 6e-5 off on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 24, 16, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    hidden = torch.ones(24, 24, dtype=torch.bool, device=device).triu(1)
    lowest = torch.finfo(dtype).min
    bias = torch.zeros(1, 1, 24, 24, device=device, dtype=dtype).masked_fill(hidden, lowest)
    worst = 0.0
    full, some = slice(None), slice(11, 12)
    for rows, causal, given in (
        (full, True, None), (full, False, None), (full, False, bias), (some, False, None), (some, False, bias),
    ):  # fmt: skip
        seen = None if given is None else given[:, :, rows]
        output, lse = kernel(query[:, :, rows], key, value, 0.3, causal, seen)
        scores = query[:, :, rows].double() @ key.double().repeat_interleave(2, 1).transpose(-1, -2) * 0.3
        if causal or given is not None:
            scores = scores.masked_fill(hidden[rows], float("-inf"))
        expected = scores.softmax(-1) @ value.double().repeat_interleave(2, 1)
        output_error = float((output - expected).abs().max()) / (16 * torch.finfo(dtype).eps)
        lse_error = float((lse - scores.logsumexp(-1)).abs().max()) / (1e-5 if dtype.itemsize >= 4 else 5e-4)
        worst = max(worst, output_error, lse_error)
    return worst


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

    >>> out, lse = sinkscope.attend(query, key, value)

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
        SinkscopeError: shapes, dtypes or devices that do not fit together, a scale or softcap that is not above 0, or
            that float32 does not hold.
    """
    _check_shapes(query, key, value)
    if not isinstance(mask, (Mask, NoneType)):
        raise SinkscopeError(f"mask={shown(mask)} is no mask; give one of sinkscope.attention.masks, or None.")
    scale = query.shape[-1] ** -0.5 if scale is None else _factor(scale, "scale")
    softcap = None if softcap is None else _factor(softcap, "softcap")
    if mask is None:
        if key.shape[2] < query.shape[2]:
            raise SinkscopeError(
                f"{query.shape[2]} queries and {key.shape[2]} keys cannot be aligned at their ends; give a mask."
            )
        mask = CausalMask(key.shape[2] - query.shape[2])
    # the kernels read the numbers of a vector one after the other, wherever its strides say they are
    query, key, value = (state if state.stride(-1) == 1 else state.contiguous() for state in (query, key, value))
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
        return _attend_band(kernel, query, key, value, mask, scale)
    parts = []
    for rows in ranges(0, query.shape[2], FUSED_ROWS):
        seen = mask.columns(rows, key.shape[2])
        bias = query.new_zeros(*mask.outer, rows.stop - rows.start, seen.stop - seen.start)
        mask.hide(bias, rows, seen)
        parts.append(kernel(query[:, :, rows], key[:, :, seen], value[:, :, seen], scale, False, bias))
    return _joined(parts)


def _factor(value: float, name: str) -> float:
    """A factor on scores, or a bound of theirs, which are float32: one that is neither zero nor infinite there."""
    number, held = finite_number(value, name, 0.0), torch.finfo(torch.float32)
    if not held.smallest_normal <= number <= held.max:
        raise SinkscopeError(
            f"{name}={shown(value)} is none that float32 holds, in which scores are; give one from "
            f"{held.smallest_normal:.1e} to {held.max:.1e}."
        )
    return number


def _all_seen(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of queries that see every key: heads that share their keys go as more queries, and read them once."""
    rows, shared = query.shape[2], {"kv_head": key.shape[1]}
    folded = rearrange(query, "batch (kv_head group) query dim -> batch kv_head (group query) dim", **shared)
    output, lse = kernel(folded, key, value, scale, False, None)
    output = rearrange(output, "batch kv_head (group query) dim -> batch (kv_head group) query dim", query=rows)
    return output, rearrange(lse, "batch kv_head (group query) -> batch (kv_head group) query", query=rows)


def _attend_band(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: BandMask, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention under a band: of each tile of queries the triangles at both ends, and what lies between them."""
    rows, early = query.shape[2], max(0, mask.window - mask.past)  # before `early` nothing has left the window
    tiles = []
    for tile in ranges(0, min(rows, early), mask.window) + ranges(min(rows, early), rows, mask.window):
        queries, height = query[:, :, tile], tile.stop - tile.start
        own = tile.start + mask.past  # column of the first query
        last, middle = slice(own, own + height), slice(0, own)
        parts = [kernel(queries, key[:, :, last], value[:, :, last], scale, True, None)]
        if own >= mask.window:
            edge = slice(own - mask.window, own - mask.window + height)
            turned = (queries.flip(2), key[:, :, edge].flip(2), value[:, :, edge].flip(2))
            output, lse = kernel(*turned, scale, True, None)
            parts.append((output.flip(2), lse.flip(2)))
            middle = slice(edge.stop, own)
        if middle.stop > middle.start:
            parts.append(kernel(queries, key[:, :, middle], value[:, :, middle], scale, False, None))
        tiles.append(merge(*parts))
    return _joined(tiles)


def _joined(parts: Sequence[tuple[Tensor, Tensor]], dim: int = 2) -> tuple[Tensor, Tensor]:
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, dim), torch.cat(lses, dim)


def scores_of(
    query: Tensor, key: Tensor, mask: Mask, rows: slice, columns: slice, scale: float, softcap: float | None
) -> Tensor:
    """Scores [batch, head, rows, columns] of a block in float32, hidden entries at the lowest float."""
    queries = rearrange(query[:, :, rows], GROUPED, kv_head=key.shape[1]).float() * scale
    scores = queries @ key[:, :, None, columns].float().mT
    scores = capped(rearrange(scores, "batch kv_head group query key -> batch (kv_head group) query key"), softcap)
    mask.hide(scores, rows, columns)
    return scores


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores as the softmax sees them."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def weigh_values(weights: Tensor, value: Tensor) -> Tensor:
    """``sum_j weight_j value_j`` [batch, head, query, dim] in float32, of weights [batch, head, query, key]."""
    grouped = rearrange(weights, GROUPED, kv_head=value.shape[1]) @ value[:, :, None].float()
    return rearrange(grouped, "batch kv_head group query dim -> batch (kv_head group) query dim")


def in_blocks(block: Callable[..., tuple[Tensor, ...]], rows: int, entries: int, *states: Tensor) -> tuple[Tensor, ...]:
    """What ``block(rows, *states)`` gives for all queries, each of which takes `entries` scores, without autocast.

    `states` are all tensors that a gradient may flow to.
    """

    def run(part: slice, *states: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(states[0].device.type, enabled=False):
            return block(part, *states)

    gradient = _wants_gradient(*states)
    blocks = []
    for part in ranges(0, rows, max(1, BLOCK_ENTRIES // entries)):
        if gradient:  # keep no block's weights for the backward pass: they would add up to T x T
            blocks.append(checkpoint(run, part, *states, use_reentrant=False))
        else:
            blocks.append(run(part, *states))
    return tuple(torch.cat(each, 2) for each in zip(*blocks, strict=True))


def _blockwise(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The reference path: any device, soft-capped scores, gradients for output and lse."""

    def block(rows: slice, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        columns = mask.columns(rows, key.shape[2])
        scores = scores_of(query, key, mask, rows, columns, scale, softcap)
        lse = scores.logsumexp(-1)
        output = weigh_values(weights_of(scores - lse[..., None]), value[:, :, columns])
        return output.to(query.dtype), lse

    batch, heads, rows, _ = query.shape
    output, lse = in_blocks(block, rows, batch * heads * key.shape[2], query, key, value)
    return output, lse


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    """The kernels read what they are told to: shapes that do not fit would have them read outside their tensors."""
    for name, state in (("query", query), ("key", key), ("value", value)):
        if not isinstance(state, Tensor) or not state.is_floating_point() or state.is_meta or state.is_sparse:
            raise SinkscopeError(f"{name}={shown(state)} is no tensor of real numbers; give one.")
    if len({(state.dtype, state.device) for state in (query, key, value)}) > 1:
        told = ", ".join(f"{state.dtype} on {state.device}" for state in (query, key, value))
        raise SinkscopeError(f"query, key and value are {told}; give them in one dtype and on one device.")
    shapes = [tuple(state.shape) for state in (query, key, value)]
    fit = (
        all(len(shape) == 4 for shape in shapes)
        and query.shape[0] == key.shape[0] == value.shape[0]
        and key.shape[1] == value.shape[1]
        and key.shape[1] > 0
        and query.shape[1] % key.shape[1] == 0
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3]
        and all(size > 0 for shape in shapes for size in shape)
    )
    if not fit:
        raise SinkscopeError(
            f"query, key and value have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; expected [batch, head, query, "
            "dim], [batch, kv_head, key, dim] and [batch, kv_head, key, value_dim], with heads a multiple of kv_heads."
        )


CHUNK = 2048


def attend_split(
    query: Tensor, key: Tensor, value: Tensor, *, chunk: int = CHUNK, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of queries that see every key, taken in chunks: output and lse of `attend` over all of them.

    >>> out, lse = sinkscope.attend_split(query, key, value, chunk=4)

    Args:
        query: [batch, head, query, dim]; few, usually one.
        key, value: [batch, kv_head, key, dim].
        chunk: keys in each chunk; the last one may be smaller.
        scale: factor on the scores; dim ** -0.5 when None.

    Raises:
        SinkscopeError: chunk < 1, or shapes that do not fit together.
    """
    chunk = whole_number(chunk, "chunk", 1)
    _check_shapes(query, key, value)
    count = key.shape[2] // chunk
    if count < 2:
        return attend(query, key, value, FullMask(), scale=scale)
    parts = []
    for row, *states in zip(query.split(1), key.split(1), value.split(1), strict=True):
        # the chunks of one sequence as a batch, without copying a key
        keys, values = (state[0, :, : count * chunk].unflatten(1, (count, chunk)).transpose(0, 1) for state in states)
        output, lse = attend(row.expand(count, -1, -1, -1), keys, values, FullMask(), scale=scale)
        parts.append(merge(*zip(output[:, None], lse[:, None], strict=True)))
    whole = _joined(parts, 0)
    if key.shape[2] == count * chunk:
        return whole
    key, value = (state[:, :, count * chunk :] for state in (key, value))
    return merge(whole, attend(query, key, value, FullMask(), scale=scale))
