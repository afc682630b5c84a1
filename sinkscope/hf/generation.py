"""What `generate()` does to the arguments of a forward pass, and its rules for drawing a token."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sinkscope.hf.caches import given_cache
from sinkscope.hf.models import is_pretrained
from sinkscope.undo import Undo

PREPARE = "prepare_inputs_for_generation"
GENERATING = inspect.unwrap(transformers.GenerationMixin.generate).__code__  # what runs while a model generates
TAKEN = "_is_user_defined"  # what `generate()` sets to True on a cache that it is given


def generates(model: nn.Module) -> bool:
    """Whether a module is a model of transformers that generates."""
    return is_pretrained(model) and hasattr(type(model), PREPARE)


def show_prompts(
    model: nn.Module, is_ours: Callable[[Any], bool], show: Callable[[Any, Tensor, int | None], None], undo: Undo
) -> None:
    """Have a model's `generate()` show its whole prompt, of which a forward pass gets only what is new, until undone.

    `show` is called at the beginning with the cache, if it `is_ours`, with the ids [batch, token], and with how many of
    the last are new; None where all are.
    """
    own = vars(model).get(PREPARE)  # what somebody put there already
    original = getattr(type(model), PREPARE)

    @functools.wraps(original)
    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        prepare = own or types.MethodType(original, self)
        cache = given_cache(kwargs)
        if not is_ours(cache):
            return prepare(input_ids, *args, **kwargs)
        if kwargs.get("is_first_iteration"):
            show(cache, input_ids, kwargs.get("next_sequence_length"))
        elif kwargs.get("use_cache") is False:  # the default of MPT, with which every step would read all tokens again
            kwargs["next_sequence_length"] = 1
        inputs = prepare(input_ids, *args, **kwargs)
        if given_cache(inputs) is not cache:  # longrope models drop it where their frequencies would change
            inputs = transformers.GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)
        return inputs

    vars(prepare_inputs_for_generation)["own"] = own
    shown, known = weakref.ref(prepare_inputs_for_generation), weakref.ref(model)

    def hide() -> None:
        there, model = shown(), known()
        if model is None or there is None or getattr(vars(model).get(PREPARE), "__func__", None) is not there:
            return
        if (before := vars(there)["own"]) is None:
            vars(model).pop(PREPARE)
        else:
            setattr(model, PREPARE, before)

    undo.callback(hide)
    setattr(model, PREPARE, types.MethodType(prepare_inputs_for_generation, model))


def is_newly_taken(cache: Any) -> bool:
    """Whether `generate()` has taken a cache since this was asked last."""
    newly = vars(cache).get(TAKEN) is True
    if newly:
        setattr(cache, TAKEN, 1)  # as true, but known again
    return newly


def sampling_rules(temperature: float, top_k: int | None, top_p: float) -> Callable[[Tensor], Tensor]:
    """The rules of `generate()` for sampling: logits [text, token of the vocabulary] to logits to draw from."""
    rules = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        rules.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1.0:
        rules.append(transformers.TopPLogitsWarper(top_p))

    def apply(logits: Tensor) -> Tensor:
        nothing: Any = torch.empty(1, 0, dtype=torch.long, device=logits.device)  # these rules do not read the text
        return rules(nothing, logits)

    return apply
