"""Facts about a loaded model that transformers keeps in its classes and configurations."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
from transformers.utils import logging

WHOLE: dict[str, Any] = {
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSpeechSeq2Seq": MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
"""Auto classes of models of several parts, with the classes that each makes by type."""


def core(model: Any) -> Any:
    """The outermost model of transformers in what was handed over: an adapter, a compiled or a trainer's wrapper.

    Where there is none, what was handed over.
    """
    inside = model.modules() if isinstance(model, nn.Module) else ()
    return next((module for module in inside if is_pretrained(module)), model)


def setting(model: Any, name: str, default: Any = None) -> Any:
    """What the configuration of a model says; the default where it says nothing, or there is none."""
    return getattr(getattr(core(model), "config", None), name, default)


def text_config(model: Any) -> Any:
    """The configuration of the part that reads text; None for a module without one."""
    return core(model).config.get_text_config(decoder=True) if has_config(model) else None


def has_config(model: Any) -> bool:
    """Whether a model carries a configuration of transformers."""
    return isinstance(getattr(core(model), "config", None), transformers.PreTrainedConfig)


def is_pretrained(module: Any) -> bool:
    """Whether a module is a model of transformers, whole or a part that is one itself."""
    return isinstance(module, transformers.PreTrainedModel)


def is_foreign(module: Any) -> bool:
    """Whether a module is of a class that neither torch nor transformers brings, as those of adapters are."""
    return type(module).__module__.split(".")[0] not in ("torch", "transformers")


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model says that it has an encoder and a decoder."""
    return bool(setting(model, "is_encoder_decoder"))


def takes_states(module: Any) -> bool:
    """Whether an attention module can look at states that another model made."""
    names = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
    return not set(names).isdisjoint(inspect.signature(module.forward).parameters)


def stream_name(model: Any, part: Any, predicts: bool) -> str:
    """What the attention of a part of a model is called: "text", "vision", "audio", "encoder" or "decoder".

    Args:
        model: the whole.
        part: a model inside it, or the whole itself.
        predicts: whether it is the part that predicts tokens, beside others.
    """
    if predicts or part is model:
        return "decoder" if is_encoder_decoder(model) and predicts else kind_of_input(part)
    return "encoder" if is_encoder_decoder(model) else kind_of_input(part, model)


def kind_of_input(model: Any, whole: Any = None) -> str:
    """What a model reads: "text", "vision" or "audio", as it says, or as the `whole` around it does beside text."""
    if "input_ids" in inspect.signature(model.forward).parameters or not is_pretrained(model):
        return "text"
    told: set[str] = set()
    for each in (model, whole):
        given = getattr(each, "input_modalities", ())
        told = {given} if isinstance(given, str) else set(given or ())
        if told - {"text"}:
            break
    return "vision" if told & {"image", "video"} else "audio" if "audio" in told else "text"


def looks_for_tokens(model: nn.Module) -> bool:
    """Whether an adapter acts from certain tokens on, for which it looks in what is read at once (activated LoRA)."""
    return any(
        getattr(getattr(module, "active_peft_config", None), "alora_invocation_tokens", None) is not None
        and not getattr(module, "_adapters_disabled", False)
        for module in model.modules()
    )


def attends_in_chunks(model: Any) -> bool:
    """Whether some layers attend within chunks of the text (llama4)."""
    return "chunked_attention" in (getattr(text_config(model), "layer_types", None) or [])


def query_heads(model: Any) -> int | None:
    """Query heads of each attention layer; None where layers differ or the configuration does not say."""
    return _size(model, "num_attention_heads")


def key_value_heads(model: Any) -> int | None:
    """Key-value heads of each attention layer; None where layers differ or the configuration does not say."""
    heads = _size(model, "num_key_value_heads")
    return query_heads(model) if heads is None else heads


def head_width(model: Any) -> int | None:
    """Width of a key of each head; None where layers differ or the configuration does not say."""
    return _size(model, "head_dim")


def _size(model: Any, name: str) -> int | None:
    try:
        size = getattr(text_config(model), name, None)
    except RuntimeError:  # of a configuration whose layers differ
        return None
    return size if isinstance(size, int) else None


def other_states(arguments: dict[str, Any]) -> str | None:
    """The name under which a forward pass is given states of an encoder to attend to; None without any."""
    names = ("encoder_hidden_states", "cross_attention_states", "encoder_outputs")
    return next((name for name in names if arguments.get(name) is not None), None)


def reading_all(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward pass of a base, by which its last layers read every token (gemma4 skips some)."""
    return {name: value for name, value in arguments.items() if name != "logits_to_keep"}


def vocabulary_size(model: Any) -> int:
    return int(text_config(model).vocab_size)


def placeholder_ids(model: Any, kinds: Sequence[str] = ("image", "video")) -> list[int]:
    """The ids of tokens that stand for an image, or a frame of a video, in a text; empty where there are none."""
    names = [f"{kind}_token_{suffix}" for kind in kinds for suffix in ("id", "index")]
    found = (setting(model, name) for name in names)
    return sorted({token for token in found if isinstance(token, int)})


def begin_token(model: Any) -> Any:
    """The id of the BOS token, several of them, or None."""
    return setting(model, "bos_token_id", getattr(text_config(model), "bos_token_id", None))


def rope_parameters(model: Any) -> dict[str, Any]:
    """Parameters of the rotary embedding; empty where there are none."""
    return getattr(text_config(model), "rope_parameters", None) or {}


def alibi_limit(model: Any) -> int | None:
    """Tokens for which a model made its linear biases; None where it has no such limit."""
    return getattr(text_config(model), "max_seq_len", None)


def position_limits(model: Any) -> list[int]:
    """Positions that the configuration names as the most, under each of the names in use."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
    return [limit for name in names if (limit := getattr(text_config(model), name, None) or 0) > 0]  # -1 of XLNet


def is_head_present(model: nn.Module) -> bool:
    return getattr(core(model), "get_output_embeddings", lambda: None)() is not None


def input_embeddings(model: nn.Module) -> Any:
    """The module that embeds tokens; None where there is none, or several that each take a part of an id (canine)."""
    try:
        return getattr(core(model), "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):  # models of pixels or sound may say so
        return None


def origin(model: Any) -> dict[str, str]:
    """The name a model was loaded by, its family, and its commit on the Hub, or "unknown"."""
    return {
        "model": str(setting(model, "_name_or_path") or ""),
        "model_type": setting(model, "model_type", type(core(model)).__name__),
        "revision": setting(model, "_commit_hash") or "unknown",
    }


def new_llama(*, vocabulary: int, width: int, layers: int, heads: int, positions: int, begin_token: int) -> Any:
    """A small Llama-style language model with random weights, its embeddings tied to its head."""
    config = transformers.LlamaConfig(
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
    return transformers.LlamaForCausalLM(config)


def auto_class(config: Any) -> Any:
    """AutoModelForCausalLM for a decoder with a language head, else AutoModel (encoders, vision).

    Models that read images beside text, and encoder-decoders of text or sound, have auto classes of their own. The
    `architectures` of a configuration decide; where it names none, a type that has a causal class and no masked one is
    a decoder.
    """
    if names := config.architectures:
        for factory, known in WHOLE.items():
            if known.get(config.model_type) in names:
                return getattr(transformers, factory)
        remote = getattr(config, "auto_map", None) or {}
        causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        is_causal = not set(names).isdisjoint(causal) or "AutoModelForCausalLM" in remote
    else:
        kind = config.model_type
        is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModel


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No log lines below errors and no progress bars from transformers inside the block."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
