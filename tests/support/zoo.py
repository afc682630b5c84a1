"""Tiny random models of many families, with weights that make attention uneven."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

VOCABULARY = 128

_PLAIN = dict(
    vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip
_GROUPED = dict(_PLAIN, num_key_value_heads=2)
_NARROW = dict(_GROUPED, head_dim=16)
_SLIDING = dict(_NARROW, sliding_window=16)
_MIXTURE = dict(_NARROW, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
_GPT = dict(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=None)
_FALCON = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=1,
    eos_token_id=None,
)
_VISION = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
_LATENT = dict(
    _GROUPED, num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
    topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16,
    v_head_dim=16,
)  # fmt: skip


def _partial(fraction: float) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=fraction))


DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", dict(_GROUPED, sliding_window=None)),
    "mistral_sliding": ("mistral", dict(_GROUPED, sliding_window=16)),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _NARROW),
    "gemma": ("gemma", _NARROW),
    "gemma2": ("gemma2", dict(_SLIDING, query_pre_attn_scalar=16)),
    "gemma3": ("gemma3_text", dict(_SLIDING, num_hidden_layers=6, query_pre_attn_scalar=16)),
    "phi": ("phi", dict(_GROUPED, **_partial(0.5))),
    "phi3": ("phi3", dict(_GROUPED, sliding_window=None)),
    "gpt2": ("gpt2", _GPT),
    "gpt_bigcode": ("gpt_bigcode", dict(_GPT, multi_query=True)),
    "gpt_neox": ("gpt_neox", dict(_PLAIN, **_partial(0.25))),
    "gpt_neo": ("gpt_neo", dict(
        vocab_size=VOCABULARY, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=16, max_position_embeddings=512, bos_token_id=1, eos_token_id=None,
    )),
    "gptj": ("gptj", dict(_GPT, rotary_dim=8)),
    "codegen": ("codegen", dict(_GPT, rotary_dim=8, n_ctx=512)),
    "falcon_rotary": ("falcon", dict(_FALCON, multi_query=True, new_decoder_architecture=False, alibi=False)),
    "falcon_grouped": ("falcon", dict(_FALCON, num_kv_heads=2, new_decoder_architecture=True, alibi=False)),
    "falcon_alibi": ("falcon", dict(_FALCON, multi_query=False, alibi=True)),
    "mpt": ("mpt", dict(
        vocab_size=VOCABULARY, d_model=64, n_layers=2, n_heads=4, max_seq_len=512, bos_token_id=1, eos_token_id=None,
    )),
    "bloom": ("bloom", dict(
        vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=None,
    )),
    "opt": ("opt", dict(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=96,
        max_position_embeddings=512, word_embed_proj_dim=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )),
    "stablelm": ("stablelm", dict(_GROUPED, **_partial(0.25))),
    "persimmon": ("persimmon", dict(_PLAIN, **_partial(0.5))),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", dict(_GROUPED, num_hidden_layers=4, sliding_window=16)),
    "starcoder2": ("starcoder2", dict(_GROUPED, sliding_window=None)),
    "cohere2": ("cohere2", dict(_GROUPED, num_hidden_layers=4, sliding_window=16)),
    "granite": ("granite", dict(_GROUPED, attention_multiplier=0.1)),
    "smollm3": ("smollm3", dict(_GROUPED, num_hidden_layers=4)),
    "mixtral": ("mixtral", dict(_GROUPED, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": ("qwen3_moe", _MIXTURE),
    "gpt_oss": ("gpt_oss", dict(_SLIDING, num_local_experts=4, num_experts_per_tok=2)),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "glm4": ("glm4", _NARROW),
    "nemotron": ("nemotron", dict(_GROUPED, **_partial(0.5))),
    "llama4": ("llama4_text", dict(
        _NARROW, num_hidden_layers=4, intermediate_size_mlp=96, num_local_experts=2, attention_chunk_size=16,
        use_qk_norm=True,
    )),
}  # fmt: skip

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _PLAIN),
    "modernbert": ("modernbert", dict(
        _PLAIN, num_hidden_layers=3, local_attention=16, global_attn_every_n_layers=3, cls_token_id=1, sep_token_id=2,
    )),
    "vit": ("vit", dict(_VISION, intermediate_size=96)),
    "dinov2": ("dinov2", dict(_VISION, mlp_ratio=2)),
    "dinov2_with_registers": ("dinov2_with_registers", dict(_VISION, mlp_ratio=2, num_register_tokens=4)),
}  # fmt: skip

VISION = ("vit", "dinov2", "dinov2_with_registers")


def build(name: str, implementation: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh copy of a family's tiny model, the same weights every time."""
    return copy.deepcopy(_build(name, implementation)).to(dtype)


def inputs(name: str, batch: int = 2, tokens: int = 40, seed: int = 5) -> dict[str, torch.Tensor]:
    """Something for the family to read."""
    generator = torch.Generator().manual_seed(seed)
    if name in VISION:
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(3, 120, (batch, tokens), generator=generator)}


@cache
def _build(name: str, implementation: str | None) -> nn.Module:
    kind, options = DECODERS.get(name) or ENCODERS[name]
    config = AutoConfig.for_model(kind, **options)
    factory = AutoModelForCausalLM if name in DECODERS else AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = factory.from_config(
            config, **({} if implementation is None else {"attn_implementation": implementation})
        )
    return with_uneven_attention(model).eval()


def with_uneven_attention(model: nn.Module) -> nn.Module:
    """The model with weights large enough for attention to pick and choose."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() >= 2:
                embedding = any(part in path for part in ("embed", "wte", "wpe"))
                spread = 0.6 if embedding else 1.2 * weight.shape[-1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
            elif "sinks" in path:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model
