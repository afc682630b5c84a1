"""Whether a model is ready for what is asked of it: said in a sentence, before anything runs."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

from torch import nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import argument_name
from sinkscope.hf.models import attends_in_chunks, has_config, is_head_present
from sinkscope.models.cached import ACAUSAL, WHOLE, find_layout, find_reading
from sinkscope.models.facts import find_anatomy
from sinkscope.models.trial import SCOPED as SCOPED
from sinkscope.models.trial import check_eval as check_eval
from sinkscope.models.trial import check_unscoped as check_unscoped


def check_reader(model: Any) -> None:
    """Raise SinkscopeError unless a model reads text, where no token looks ahead, and predicts the next one."""
    base, name = find_anatomy(model).base, type(model).__name__
    if not has_config(model) or "input_ids" not in inspect.signature(base.forward).parameters:
        raise not_a_decoder(name, "reads no token ids")
    if find_reading(model) == ACAUSAL:
        raise not_a_decoder(name, "has attention that is not causal")
    _check_head(model)


def check_decoder(model: Any, predicts: bool = False) -> None:
    """Raise SinkscopeError unless a model reads text token by token, and keeps keys and values of it.

    One that `predicts` must have a language head too.
    """
    base, name = find_anatomy(model).base, type(model).__name__
    accepted = inspect.signature(base.forward).parameters
    if not has_config(model) or "input_ids" not in accepted or argument_name(base.forward) is None:
        raise not_a_decoder(name, "keeps no keys in a cache")
    _check_causal(model)
    if predicts:
        _check_head(model)


def check_streamable(model: Any) -> None:
    """Raise SinkscopeError unless keys can be taken out of a model's cache, and what it reads on is right."""
    check_decoder(model)
    name, layout = type(model).__name__, find_layout(model)
    if find_reading(model) == ACAUSAL:
        raise not_a_decoder(name, "has attention that is not causal")
    if not layout.windows and not layout.foreign:
        raise not_a_decoder(name, "keeps no keys in its cache")
    if layout.foreign:
        raise SinkscopeError(f"{name} {layout.foreign}; it can be read densely, but not streamed.")
    if find_reading(model) == WHOLE:
        raise SinkscopeError(
            f"{name} gives other numbers for a text that it reads in parts on its own cache than for the whole of it "
            f"(transformers {version('transformers')}); it can be read densely, but not streamed."
        )


def _check_causal(model: Any) -> None:
    """Refuse attention to later tokens; a module that says so may not run, or be given a causal mask."""
    doubtful = any(getattr(part.attention, "is_causal", True) is False for part in find_anatomy(model).parts)
    if doubtful and find_reading(model) == ACAUSAL:
        raise not_a_decoder(type(model).__name__, "has attention that is not causal")


def _check_head(model: Any) -> None:
    name = type(model).__name__
    if not is_head_present(model):
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


def check_unchunked(model: Any) -> None:
    """Raise SinkscopeError for attention in chunks (llama4): what a token sees depends on its place in the text."""
    if attends_in_chunks(model):
        raise SinkscopeError(
            f"{type(model).__name__} attends in chunks, whose borders are places in the text, so its keys cannot be "
            "moved within a cache or counted by a window; sinkscope.perplexity reads it."
        )


def not_finite(what: str, model: nn.Module) -> SinkscopeError:
    """The error for NaN or infinity, naming the weights to blame if it is them."""
    weights = next((name for name, each in model.named_parameters() if not bool(each.isfinite().all())), None)
    if weights is None:
        cause = "; all weights are finite, so look at the inputs or the dtype (float16 overflows: try bfloat16)."
    else:
        cause = f": the weights {weights} are not finite; load the model again or repair its checkpoint."
    return SinkscopeError(f"{what} hold NaN or infinity{cause}")
