"""Facts about a loaded model that transformers keeps in its classes and configurations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

CHUNKED = "chunked_attention"


def is_pretrained(module: Any) -> bool:
    """Whether a module is a model of transformers, whole or a part that is one itself."""
    return isinstance(module, PreTrainedModel)


def has_config(model: Any) -> bool:
    """Whether a model carries a configuration of transformers."""
    return isinstance(getattr(model, "config", None), PreTrainedConfig)


def text_config(model: Any) -> Any:
    """The configuration of the part that reads text; None for a module without one."""
    return model.config.get_text_config(decoder=True) if has_config(model) else None


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model has cross-attention."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False))


def attends_in_chunks(model: Any) -> bool:
    """Whether some layers attend within chunks of the text (llama4)."""
    return CHUNKED in (getattr(text_config(model), "layer_types", None) or [])


def query_heads(model: Any) -> int | None:
    """Query heads of each attention layer; None where layers differ or the configuration does not say."""
    heads = getattr(text_config(model), "num_attention_heads", None)
    return heads if isinstance(heads, int) else None


def key_value_heads(model: Any) -> int | None:
    """Key-value heads of each attention layer; None where layers differ or the configuration does not say."""
    heads = getattr(text_config(model), "num_key_value_heads", None)
    return heads if isinstance(heads, int) else query_heads(model)


def vocabulary_size(model: Any) -> int:
    """Tokens of the vocabulary."""
    return int(text_config(model).vocab_size)


def begin_token(model: Any) -> Any:
    """The id of the BOS token, several of them, or None."""
    return getattr(getattr(model, "config", None), "bos_token_id", None)


def rope_parameters(model: Any) -> dict[str, Any]:
    """Parameters of the rotary embedding; empty where there are none."""
    return getattr(text_config(model), "rope_parameters", None) or {}


def alibi_limit(model: Any) -> int | None:
    """Tokens for which a model made its linear biases; None where it has no such limit."""
    return getattr(text_config(model), "max_seq_len", None)


def position_limits(model: Any) -> list[int]:
    """Positions that the configuration names as the most, under each of the names in use."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    limits = (getattr(text_config(model), name, None) for name in names)
    return [limit for limit in limits if limit]


def is_head_present(model: nn.Module) -> bool:
    """Whether a model has a language head."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def input_embeddings(model: nn.Module) -> Any:
    """The module that embeds tokens; None where there is none."""
    find: Any = getattr(model, "get_input_embeddings", lambda: None)
    return find()


def name_or_path(model: Any) -> str:
    """The name that a model was loaded by, or an empty string."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def model_type(model: Any) -> str:
    """The family of a model: "llama"; its class for a module without a configuration."""
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)


def revision(model: Any) -> str:
    """The commit on the hub that a model was loaded from, or "unknown"."""
    return getattr(getattr(model, "config", None), "_commit_hash", None) or "unknown"


def new_llama(*, vocabulary: int, width: int, layers: int, heads: int, positions: int, begin_token: int) -> Any:
    """A small Llama-style language model with random weights, its embeddings tied to its head.

    Args:
        vocabulary, positions: how many tokens it knows, and places it is told of.
        width, layers, heads: its shape.
        begin_token: the id of its BOS token.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * (width // 3),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=begin_token,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def auto_class(config: Any) -> Any:
    """AutoModelForCausalLM for a decoder with a language head, else AutoModel (encoders, vision).

    config: of transformers. Its `architectures` decide; where it names none, a type that has a causal class
        and no masked one is a decoder.
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    names = config.architectures or []
    if names:
        causal = {
            name
            for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
            for name in ((value,) if isinstance(value, str) else value)
        }
        remote = getattr(config, "auto_map", None) or {}
        is_causal = any(name in causal for name in names) or "AutoModelForCausalLM" in remote
    else:
        kind = config.model_type
        is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return AutoModelForCausalLM if is_causal else AutoModel


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No log lines below errors and no progress bars from transformers inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
