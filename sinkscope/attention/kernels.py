"""Fused kernels that return the log-sum-exp, one per device, each checked before it is trusted.

torch has them as operators behind `scaled_dot_product_attention`. They are not part of its documented interface, so
the first use on a device and dtype runs a small case against a plain softmax; a kernel that is missing, fails or
disagrees is left out with one warning and the blockwise path takes over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, float, bool, Tensor | None], tuple[Tensor, Tensor]]
"""(query, key, value, scale, causal, bias) -> (output, float32 lse); causal needs as many queries as keys."""


def _flash_cpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch's flash attention for the CPU: float32 lse for every dtype, grouped heads without repeating them."""
    value_dim = value.shape[-1]
    width = max(query.shape[-1], value_dim)  # one width for all three: MLA has narrower values
    query, key, value = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (query, key, value))
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    return output[..., :value_dim], lse.float()


def _efficient_cuda(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch's memory-efficient attention for CUDA, in float32 and half precision."""
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
    """The fused kernel of a device type for a dtype, or None where there is none that can be trusted."""
    kernel = KERNELS.get(device)
    if kernel is None or (dtype == torch.float64 and device == "cuda"):
        return None
    try:
        error = _disagreement(kernel, device, dtype)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as problem:
        warnings.warn(
            f"no fused attention with log-sum-exp for {dtype} on {device} ({problem}); "
            "sinkscope computes blockwise, which is slower",
            stacklevel=2,
        )
        return None
    if not error < 1:
        warnings.warn(
            f"torch's fused attention on {device} in {dtype} misses its tolerance {error:.1f} times over in a "
            "self-check; sinkscope computes blockwise, which is slower",
            stacklevel=2,
        )
        return None
    return kernel


@torch.no_grad()
def _disagreement(kernel: Kernel, device: str, dtype: torch.dtype) -> float:
    """Largest error of a kernel on small cases (causal, full and biased, grouped heads), 1 being what is tolerated.

    An output is rounded to its dtype; an lse is formed in float32, from half-precision products 6e-5 off on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 24, 16, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    hidden = torch.ones(24, 24, dtype=torch.bool, device=device).triu(1)
    lowest = torch.finfo(dtype).min
    bias = torch.zeros(1, 1, 24, 24, device=device, dtype=dtype).masked_fill(hidden, lowest)
    worst = 0.0
    for causal, given in ((True, None), (False, None), (False, bias)):
        output, lse = kernel(query, key, value, 0.3, causal, given)
        scores = query.double() @ key.double().repeat_interleave(2, 1).transpose(-1, -2) * 0.3
        if causal or given is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        expected = scores.softmax(-1) @ value.double().repeat_interleave(2, 1)
        output_error = float((output - expected).abs().max()) / (16 * torch.finfo(dtype).eps)
        lse_error = float((lse - scores.logsumexp(-1)).abs().max()) / (1e-5 if dtype.itemsize >= 4 else 5e-4)
        worst = max(worst, output_error, lse_error)
    return worst
