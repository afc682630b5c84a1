"""Whether a model is ready for what is asked of it: said in a sentence, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.caches import argument_name, given_cache, growing_cache, has_only_keys_and_values, with_cache
from sinkscope.hf.models import attends_in_chunks, core, has_config, is_head_present
from sinkscope.hf.placement import is_without_weights, reading_device, weights_at_hand
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import find_anatomy

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SCOPED: WeakSet[nn.Module] = WeakSet()
"""Attention modules that carry a scope now."""


def check_decoder(model: Any, predicts: bool = False) -> None:
    """Raise SinkscopeError unless a model reads text token by token, and keeps keys and values of it and nothing else.

    One that `predicts` must have a language head too.
    """
    anatomy, name = find_anatomy(model), type(core(model)).__name__
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
    check_wrapper(model)


def not_a_decoder(name: str, reason: str) -> SinkscopeError:
    """The error for a model of a class `name` to which no policy applies."""
    return SinkscopeError(
        f"{name} does not read token by token from cached keys and values (it {reason}), so no policy applies to it; "
        "give a decoder such as those of sinkscope.load()."
    )


@uncompiled()
@torch.no_grad()
def check_wrapper(model: nn.Module) -> None:
    """Raise SinkscopeError for a wrapper around a model that has it read other tokens, or another cache, than given.

    Adapters that put tokens of their own before a text do so (prompt and prefix tuning). Two tokens tell.
    """
    base, name = find_anatomy(model).base, type(model).__name__
    accepted, read = inspect.signature(base.forward).parameters, []
    scoped = any(module in SCOPED for module in base.modules())
    if core(model) is model or scoped or is_without_weights(model) or "input_ids" not in accepted:
        return

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(accepted, args, strict=False)) | kwargs
        held, tokens = given_cache(given), given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        read.append((tokens.shape[1] + (held.get_seq_length() if held is not None else 0), held))

    caches = [None, growing_cache(model)] if argument_name(base.forward) else [None]
    ids = torch.zeros(1, 2, dtype=torch.long, device=reading_device(model))
    hook = base.register_forward_pre_hook(look, with_kwargs=True)
    try:
        for cache in caches:
            model(input_ids=ids, **({} if cache is None else with_cache(model, cache)))
    except TypeError as error:
        raise SinkscopeError(
            f"{name} around {type(core(model)).__name__} does not take what this does ({first_line(error)}); hand over "
            "the model inside it."
        ) from error
    finally:
        hook.remove()
    counts = [count for count, _ in read]
    if counts != [2] * len(caches) or read[-1][1] is not caches[-1]:
        other = next((count for count in counts if count != 2), 2)
        what = f"reads {other} tokens where it is given 2" if other != 2 else "does not pass on the cache it is given"
        raise SinkscopeError(
            f"{name} changes what its {type(core(model)).__name__} reads: it {what}, as adapters do that put virtual "
            "tokens before a text; call it yourself inside sinkscope.capture, which sees them, or hand over the model "
            "inside it."
        )


def check_weights(model: nn.Module) -> None:
    """Raise SinkscopeError for a model without weights."""
    if is_without_weights(model):
        raise SinkscopeError(
            f"{type(core(model)).__name__} has weights on torch's meta device, which holds no numbers; load them, as "
            "sinkscope.load() and from_pretrained do."
        )


def check_eval(model: Any, what: str) -> None:
    """Raise SinkscopeError for a model without weights, or in training mode, where `what` would be random."""
    check_weights(model)
    drops = (module.training for module in model.modules() if isinstance(module, DROPOUTS) and module.p)
    if core(model).training or any(drops):  # those of an adapter may be, inside a model that is not
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
    weights = next(_infinite_weights(model), None)
    if weights is None:
        cause = "; all weights are finite, so look at the inputs or the dtype (float16 overflows: try bfloat16)."
    else:
        cause = f": the weights {weights} are not finite; load the model again or repair its checkpoint."
    return SinkscopeError(f"{what} hold NaN or infinity{cause}")


def _infinite_weights(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        with weights_at_hand(module):
            for name, each in module.named_parameters(recurse=False):
                if not bool(each.isfinite().all()):
                    yield f"{path}.{name}".strip(".")
