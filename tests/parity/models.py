"""Tiny models with the same weights under any release of transformers."""

from __future__ import annotations

import torch
from torch import nn

COMMON = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=1)
SIZES = dict(intermediate_size=48, num_key_value_heads=2, max_position_embeddings=512)
FAMILIES = {
    "llama": COMMON | SIZES,
    "mistral": COMMON | SIZES | dict(sliding_window=512),
    "gpt_neox": COMMON | dict(intermediate_size=48, max_position_embeddings=512, rotary_pct=0.25),
    "falcon": COMMON
    | dict(new_decoder_architecture=False, multi_query=True, parallel_attn=True, alibi=False, bias=False),
}
"""Settings by type of model."""
SINKS, RECENT, TOKENS, NEW = 4, 20, 120, 40
"""First and last tokens kept once a token was read, tokens of the text, tokens generated after it."""
DEMO_CACHE, DEMO_TOKENS = (4, 124), 1024
"""The same of the demo model."""


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode, its weights drawn in the order of their names."""
    named = {
        name.replace("embed_out", "lm_head"): weight for name, weight in model.named_parameters()
    }  # older: gpt_neox
    for number, (name, weight) in enumerate(sorted(named.items())):
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        is_norm = weight.ndim == 1 and name.endswith("weight")
        with torch.no_grad():
            weight.copy_(1 + 0.1 * drawn if is_norm else 0.3 * drawn)
    return model.eval()


def text() -> torch.Tensor:
    return torch.randint(2, 96, (1, TOKENS), generator=torch.Generator().manual_seed(7))
