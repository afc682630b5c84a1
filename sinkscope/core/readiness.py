"""Whether a model is ready for what is asked of it: said in a sentence, before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from sinkscope.core.anatomy import find_anatomy
from sinkscope.errors import SinkscopeError

KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)  # a dummy layer shares those of another


def check_decoder(model: Any, predicts: bool = False) -> None:
    """Check that a model reads text token by token, and keeps keys and values of it and nothing else.

    Args:
        model: any model.
        predicts: whether it must have a language head too.

    Raises:
        SinkscopeError: no tokens to read, no cache, attention that is not causal, other states in the cache, no
            language head; or no attention at all.
    """
    anatomy, name = find_anatomy(model), type(model).__name__
    accepted = inspect.signature(anatomy.base.forward).parameters
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig) or not {"input_ids", "past_key_values"} <= set(accepted):
        raise not_a_decoder(name, "keeps no keys in a cache")
    if any(getattr(part.attention, "is_causal", True) is False for part in anatomy.parts):
        raise not_a_decoder(name, "has attention that is not causal")
    if not all(type(layer) in KEYS_AND_VALUES for layer in DynamicCache(config=config).layers):
        raise not_a_decoder(name, "caches other states than keys and values in some layers")
    if predicts and getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise SinkscopeError(
            f"{name} has no language head, so it predicts no next token; load the model with one, as sinkscope.load() "
            "and AutoModelForCausalLM do."
        )


def not_a_decoder(name: str, reason: str) -> SinkscopeError:
    """The error for a model of a class `name` to which no policy applies."""
    return SinkscopeError(
        f"{name} does not read token by token from cached keys and values (it {reason}), so no policy applies to it; "
        "give a decoder such as those of sinkscope.load()."
    )


def check_eval(model: Any, what: str) -> None:
    """Raise SinkscopeError for a model in training mode, where `what` would be random."""
    if model.training:
        raise SinkscopeError(
            f"{type(model).__name__} is in training mode, where dropout makes {what} random; call model.eval()."
        )


def check_unscoped(base: Any) -> None:
    """Raise SinkscopeError for a model that carries a scope, which would measure the tokens it is tried on."""
    from sinkscope.core.scope import Scope  # asks this file itself

    if any(isinstance(getattr(hook, "__self__", None), Scope) for hook in base._forward_pre_hooks.values()):
        raise SinkscopeError(
            f"{type(base).__name__} carries a scope, which would record the tokens it is tried on; leave the scope, or "
            "do this before it."
        )


def check_unchunked(model: Any) -> None:
    """Raise SinkscopeError for attention in chunks (llama4): what a token sees depends on its place in the text."""
    if "chunked_attention" in (getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []):
        raise SinkscopeError(
            f"{type(model).__name__} attends in chunks, whose borders are places in the text; it cannot be streamed."
        )
