"""A model of one layer that writes the value it sees, and knows nothing else; and its tokenizer of words."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VALUES = ("apple", "bread", "bridge", "castle", "cotton", "desert", "dragon", "flower")
WORDS = ("<s>", "The", "secret", "word", "is", ".", "What", "the", "?", "hay", *VALUES)
FIRST_VALUE = WORDS.index(VALUES[0])
SIZE = 32


def words(template: str | None = None) -> PreTrainedTokenizerFast:
    """A token for each word."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="hay"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="hay")
    wrapped.chat_template = template
    return wrapped


def copier() -> LlamaForCausalLM:
    """Every query attends to the tokens that are values, wherever they are, and the head writes them out.

    One pair of dimensions turns so slowly that keys hardly depend on their place; queries and keys are in that pair.
    """
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30}, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    layer, count = model.model.layers[0], len(WORDS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight[:, :count] = torch.eye(count)
        layer.self_attn.q_proj.weight[SIZE // 2 - 1, :count] = 8.0  # the slowest pair's first half
        layer.self_attn.k_proj.weight[SIZE // 2 - 1, FIRST_VALUE:count] = 8.0
        layer.self_attn.v_proj.weight[FIRST_VALUE:count, FIRST_VALUE:count] = torch.eye(len(VALUES))
        layer.self_attn.o_proj.weight.copy_(torch.eye(SIZE))
        model.lm_head.weight[:count, :count] = torch.eye(count)
    return model
