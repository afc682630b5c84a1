"""Whether a model is ready for what is asked of it: said in a sentence, before anything runs."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.caches import argument_name, given_cache, growing_cache, with_cache
from sinkscope.hf.models import attends_in_chunks, core, has_config, is_head_present, setting, vocabulary_size
from sinkscope.hf.placement import absent_weights, reading_device, weights_at_hand
from sinkscope.models.cached import ACAUSAL, WHOLE, find_layout, find_reading
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import find_anatomy, find_streams
from sinkscope.models.trial import SCOPED as SCOPED
from sinkscope.models.trial import check_eval as check_eval
from sinkscope.models.trial import check_unscoped as check_unscoped
from sinkscope.models.trial import check_weights as check_weights
from sinkscope.undo import Undo

COUNT = 6  # tokens on which a wrapper is tried


def check_reader(model: Any, looks_ahead: bool = False) -> None:
    """Raise SinkscopeError unless a model reads text, and predicts the next token, which it has not seen.

    Whether it `looks_ahead` is not asked of one whose tokens may, where what they are read with says so.
    """
    base, name = find_anatomy(model).base, type(core(model)).__name__
    if not has_config(model) or "input_ids" not in inspect.signature(base.forward).parameters:
        raise not_a_decoder(name, "reads no token ids")
    _check_alone(model)
    check_wrapper(model)
    if not looks_ahead and find_reading(model) == ACAUSAL:
        raise not_a_decoder(name, "has attention that is not causal")
    _check_head(model)


def check_decoder(model: Any, predicts: bool = False) -> None:
    """Raise SinkscopeError unless a model reads text token by token, and keeps keys and values of it.

    One that `predicts` must have a language head too.
    """
    _check_alone(model)
    check_weights(model, is_run=False)
    base, name = find_anatomy(model).base, type(core(model)).__name__
    accepted = inspect.signature(base.forward).parameters
    if not has_config(model) or "input_ids" not in accepted or argument_name(base.forward) is None:
        raise not_a_decoder(name, "keeps no keys in a cache")
    _check_causal(model)
    if predicts:
        _check_head(model)
    check_wrapper(model)


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


def _check_alone(model: Any) -> None:
    """Refuse models that read their text beside what an encoder made of another one."""
    if "encoder" in find_streams(model):
        raise not_a_decoder(type(core(model)).__name__, "reads with an encoder and writes with a decoder")
    if setting(model, "add_cross_attention"):
        raise not_a_decoder(type(core(model)).__name__, "looks at what an encoder made, which a text alone lacks")


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
    check_wrapper(model, predicts=True)


def not_a_decoder(name: str, reason: str) -> SinkscopeError:
    """The error for a model of a class `name` to which no policy applies."""
    return SinkscopeError(
        f"{name} does not read token by token from cached keys and values (it {reason}), so no policy applies to it; "
        "give a decoder such as those of sinkscope.load()."
    )


@uncompiled()
@torch.no_grad()
def check_wrapper(model: nn.Module, predicts: bool = False) -> None:
    """Raise SinkscopeError for a wrapper around a model that has it read other tokens, or another cache, than given.

    Adapters that put tokens of their own before a text do so (prompt and prefix tuning). A few tokens tell. One that
    `predicts` has to give logits for each of them.
    """
    base, name = find_anatomy(model).base, type(model).__name__
    accepted, read, here = inspect.signature(base.forward).parameters, [], threading.get_ident()
    changes: list[str] = []
    scoped = any(module in SCOPED for module in base.modules())
    if core(model) is model or scoped or absent_weights(model) is not None or "input_ids" not in accepted:
        return
    if "encoder" in find_streams(model):  # it reads more than tokens
        return

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != here:
            return
        given = dict(zip(accepted, args, strict=False)) | kwargs
        held, tokens = given_cache(given), given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        read.append((tokens.shape[1] + (held.get_seq_length() if held is not None else 0), held))
        mask, places = given.get("attention_mask"), given.get("position_ids")
        if given.get("input_ids") is not None and not torch.equal(tokens, ids):
            changes.append("reads other tokens than it is given")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()):
            changes.append("hides some of the tokens it is given")
        if isinstance(places, Tensor) and places.dim() == 2 and not bool((places == torch.arange(COUNT)).all()):
            changes.append("counts positions in a way of its own")

    caches = [None, growing_cache(model)] if argument_name(base.forward) else [None]
    ids = torch.arange(COUNT, device=reading_device(model))[None] % vocabulary_size(base)
    try:
        with Undo() as undo:
            undo.hang(base, look, before=True, with_kwargs=True)
            for cache in caches:
                made = model(input_ids=ids, **({} if cache is None else with_cache(model, cache)))
                logits = getattr(made, "logits", None)
                if predicts and not (isinstance(logits, Tensor) and logits.shape[:2] == ids.shape):
                    changes.append(f"gives no `logits` for each of the {COUNT} tokens that it is given")
    except TypeError as error:
        raise SinkscopeError(
            f"{name} around {type(core(model)).__name__} does not take what this does ({first_line(error)}); hand over "
            "the model inside it."
        ) from error
    counts = [count for count, _ in read]
    inside = type(core(model)).__name__
    if counts != [COUNT] * len(caches) or read[-1][1] is not caches[-1]:
        other = next((count for count in counts if count != COUNT), COUNT)
        what = f"reads {other} tokens where it is given {COUNT}"
        raise SinkscopeError(
            f"{name} changes what its {inside} reads: it {what if other != COUNT else 'passes on another cache'}, as "
            "adapters do that put virtual tokens before a text; call it yourself inside sinkscope.capture, which sees "
            "them, or hand over the model inside it."
        )
    if changes:
        raise SinkscopeError(
            f"{name} is no plain wrapper of its {inside}: it {changes[0]}; call it yourself inside sinkscope.capture, "
            "or hand over the model inside it."
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
