"""What `generate()` does to the arguments of a forward pass, and its rules for drawing a token."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sinkscope.hf.caches import given_cache

PREPARE = "prepare_inputs_for_generation"


def show_prompts(
    model: nn.Module, is_ours: Callable[[Any], bool], show: Callable[[Any, Tensor, int | None], None]
) -> bool:
    """Have a model's `generate()` show its whole prompt, of which a forward pass gets only what is new.

    `show` is called at the beginning with the cache, if it `is_ours`, with the ids [batch, token], and with how many of
    the last are new; None where all are. A model that does not generate, or that carries such a function already, is
    left alone: returned is whether it is done.
    """
    if not hasattr(type(model), PREPARE) or PREPARE in vars(model):
        return False
    original = getattr(type(model), PREPARE)

    @functools.wraps(original)
    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = given_cache(kwargs)
        if not is_ours(cache):
            return original(self, input_ids, *args, **kwargs)
        if kwargs.get("is_first_iteration"):
            show(cache, input_ids, kwargs.get("next_sequence_length"))
        elif kwargs.get("use_cache") is False:  # the default of MPT, with which every step would read all tokens again
            kwargs["next_sequence_length"] = 1
        inputs = original(self, input_ids, *args, **kwargs)
        if given_cache(inputs) is not cache:  # longrope models drop it where their frequencies would change
            inputs = transformers.GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)
        return inputs

    setattr(model, PREPARE, types.MethodType(prepare_inputs_for_generation, model))
    return True


def hide_prompts(model: nn.Module) -> None:
    """Take off what `show_prompts` put on."""
    vars(model).pop(PREPARE, None)


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
