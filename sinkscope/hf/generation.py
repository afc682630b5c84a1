"""What `generate()` does to the arguments of a forward pass, and its rules for drawing a token."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.caches import given_cache
from sinkscope.hf.models import is_pretrained, quiet_transformers, setting
from sinkscope.hf.placement import reading_device
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


def written_by(model: Any, inputs: Mapping[str, Any], count: int) -> tuple[Tensor, Tensor]:
    """What an encoder-decoder writes greedily: ids [batch, token] for its decoder to read, and which are no padding.

    Args:
        model: with a language head.
        inputs: what its encoder reads, as a processor gives it.
        count: tokens at most.

    Raises:
        SinkscopeError: a model that does not generate, or not from these inputs.
    """
    name = type(model).__name__
    if not hasattr(model, "generate") or not getattr(model, "can_generate", lambda: False)():
        raise SinkscopeError(f"{name} writes nothing, as it has no language head; give decoder_input_ids.")
    device = reading_device(model)
    given = {key: each.to(device) if isinstance(each, Tensor) else each for key, each in inputs.items()}
    try:
        with torch.no_grad(), quiet_transformers():
            written = model.generate(**given, max_new_tokens=count, do_sample=False, num_beams=1)
    except Exception as problem:  # whatever the code of any type may raise
        raise SinkscopeError(
            f"{name} wrote nothing for its decoder to read ({first_line(problem)}); give decoder_input_ids."
        ) from problem
    start, end = (setting(model, f"{kind}_token_id") for kind in ("decoder_start", "eos"))
    if start is not None and not bool((written[:, 0] == start).all()):
        written = torch.nn.functional.pad(written, (1, 0), value=start)
    ends = (
        torch.isin(written, torch.tensor(end if isinstance(end, list) else [end], device=written.device))
        if (end is not None)
        else torch.zeros_like(written, dtype=torch.bool)
    )
    ends[:, 0] = False  # of some the start is the end
    real = (ends.cumsum(1) - ends.int()) == 0
    longest = int(real.sum(1).max())
    return written[:, :longest], real[:, :longest]


def end_ids(model: Any) -> list[int]:
    """The tokens with which `generate()` ends a text by itself."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if found is None else [int(each) for each in (found if isinstance(found, (list, tuple)) else [found])]


def generated(model: Any, ids: Tensor, count: int, sampling: Mapping[str, Any] | None, seed: int) -> list[list[int]]:
    """What `generate()` writes behind texts of one length, the token that ends each included.

    Args:
        model: with a language head.
        ids: [text, token], none of them padding.
        count: new tokens at most.
        sampling: temperature, top_k and top_p; greedy where None.
        seed: of the draws; the state of torch's own generators is left as it is.
    """
    ends = end_ids(model)
    given = ids.to(reading_device(model))
    rules: dict[str, Any] = {"do_sample": False} if sampling is None else {"do_sample": True, "top_k": 0, **sampling}
    pad = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
    devices = [given.device] if given.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), quiet_transformers():
        torch.manual_seed(seed)
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            pad_token_id=pad if pad is not None else (ends or [0])[0],
            **rules,
        )
    rows = written[:, ids.shape[1] :].tolist()
    stops = [next((place + 1 for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]
