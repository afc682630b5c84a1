"""Whether a model is ready for what is asked of it: said in a sentence, before anything runs."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakSet

from torch import nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import argument_name, has_only_keys_and_values
from sinkscope.hf.models import attends_in_chunks, has_config, is_head_present, setting
from sinkscope.models.facts import find_streams

SCOPED: WeakSet[nn.Module] = WeakSet()
"""Attention modules that carry a scope now."""


def check_decoder(model: Any, predicts: bool = False) -> None:
    """Raise SinkscopeError unless a model reads text token by token, and keeps keys and values of it and nothing else.

    One that `predicts` must have a language head too.
    """
    streams, name = find_streams(model), type(model).__name__
    anatomy = next(iter(streams.values()))
    if "encoder" in streams:
        raise not_a_decoder(name, "reads with an encoder and writes with a decoder")
    if setting(model, "add_cross_attention"):
        raise not_a_decoder(name, "looks at what an encoder made, which a text alone lacks")
    if any(other.crosses and set(other.numbers).isdisjoint(anatomy.numbers) for other in streams.values()):
        raise not_a_decoder(name, "has layers of their own for images among those of its cache")
    accepted = inspect.signature(anatomy.base.forward).parameters
    if not has_config(model) or "input_ids" not in accepted or argument_name(anatomy.base.forward) is None:
        raise not_a_decoder(name, "keeps no keys in a cache")
    if any(getattr(part.attention, "is_causal", True) is False for part in anatomy.parts):
        raise not_a_decoder(name, "has attention that is not causal")
    if not has_only_keys_and_values(model):
        raise not_a_decoder(name, "caches other states than keys and values in some layers")
    if predicts and not is_head_present(model):
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
    if any(module in SCOPED for module in base.modules()):
        raise SinkscopeError(
            f"{type(base).__name__} carries a scope, which would record the tokens it is tried on; leave the scope, or "
            "do this before it."
        )


def check_unchunked(model: Any) -> None:
    """Raise SinkscopeError for attention in chunks (llama4): what a token sees depends on its place in the text."""
    if attends_in_chunks(model):
        raise SinkscopeError(
            f"{type(model).__name__} attends in chunks, whose borders are places in the text; it cannot be streamed."
        )


def not_finite(what: str, model: nn.Module) -> SinkscopeError:
    """The error for NaN or infinity, naming the weights to blame if it is them."""
    weights = next((name for name, each in model.named_parameters() if not bool(each.isfinite().all())), None)
    if weights is None:
        cause = "; all weights are finite, so look at the inputs or the dtype (float16 overflows: try bfloat16)."
    else:
        cause = f": the weights {weights} are not finite; load the model again or repair its checkpoint."
    return SinkscopeError(f"{what} hold NaN or infinity{cause}")
