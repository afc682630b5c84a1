"""What a model keeps of the tokens it has read, found by having it read a few.

One token shows which layers of its cache hold the keys that each attention layer reads, and which native window they
slide in. Six tokens, read at once and in parts, show whether it reads on from its cache as if it had never stopped.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import AttentionCall, MaskRequest, register, use_implementation
from sinkscope.hf.caches import (
    argument_name,
    foreign_layer,
    growing_cache,
    growing_window,
    held_states,
    returned_cache,
    with_cache,
)
from sinkscope.hf.images import without_offsets
from sinkscope.hf.models import has_config, looks_for_tokens, vocabulary_size
from sinkscope.hf.placement import reading_device
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import Anatomy, find_anatomy
from sinkscope.models.surroundings import coarseness
from sinkscope.models.trial import check_eval, check_unscoped
from sinkscope.undo import Undo

LOOK = "sinkscope look"  # the implementation of attention with which a model is looked at


@dataclass
class Look:
    """What is seen of the attention of one token after no other."""

    calls: list[AttentionCall] = field(default_factory=list)


class AskedMask(Tensor):
    """A mask that knows what it was asked for; so does a copy on another device, and nothing else made of it."""

    asked: MaskRequest

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func is Tensor.to and result.dtype == args[0].dtype:
            result.asked = args[0].asked
        return result


_LOOK: ContextVar[Look | None] = ContextVar("look", default=None)  # of this thread


def look_at(base: Any, undo: Undo) -> Look:
    """Show every call of attention in forward passes over one token alone, which sees nothing but itself."""
    look = Look()
    undo.callback(_LOOK.set, None)
    _LOOK.set(look)
    use_implementation([base], LOOK, undo)
    return look


def _seen() -> Look:
    look = _LOOK.get()
    if look is None:
        raise SinkscopeError(
            "a model was called while another thread tried it on a few tokens; use one thread, or give each a model of "
            "its own."
        )
    return look


def _attend(call: AttentionCall) -> tuple[Tensor, None]:
    _seen().calls.append(call)
    mean = call.value.mean(2, keepdim=True).repeat_interleave(call.query.shape[1] // call.value.shape[1], 1)
    return mean.expand(-1, -1, call.query.shape[2], -1), None


def _mask(asked: MaskRequest) -> Tensor:
    _seen()
    mask = torch.zeros(asked.batch, 1, asked.queries, asked.keys, device=asked.device).as_subclass(AskedMask)
    mask.asked = asked
    return mask


register(LOOK, _attend, _mask)


@dataclass(frozen=True)
class Layout:
    """Which layers of a model's cache hold keys, and which attention layers read them.

    Attributes:
        natives: the native window of each attention layer that has keys, by its place among the attention layers: in
            tokens, that being read included; None for full ones.
        windows: the same for each layer of the cache that holds keys, by its place in the cache.
        reads: for each attention layer the places in the cache of the keys it reads: one; several where it runs several
            times; none where it has no keys (linear attention) or does not run (cross-attention without an encoder).
        foreign: why it cannot be told what the cache holds, or "".
        missed: the class of a module that attends to keys of the cache and is none of the attention layers, or "".
        holds_keys: whether the cache keeps the keys that attention sees, and not what they are made of.
        is_followed: whether attention is what its scores and the mask say, with no bias, choice or function of the
            layer's own.
    """

    natives: dict[int, int | None]
    windows: dict[int, int | None] = field(default_factory=dict)
    reads: tuple[tuple[int, ...], ...] = ()
    foreign: str = ""
    missed: str = ""
    holds_keys: bool = True
    is_followed: bool = True


_LAYOUTS: WeakKeyDictionary[nn.Module, tuple[int, Layout]] = WeakKeyDictionary()


def find_layout(model: nn.Module) -> Layout:
    """The layout of a model's cache, found once."""
    anatomy = find_anatomy(model)
    base, count = anatomy.base, sum(1 for _ in anatomy.base.modules())
    if base not in _LAYOUTS or _LAYOUTS[base][0] != count:
        check_unscoped(base)
        _LAYOUTS[base] = (count, _look(anatomy))
    return _LAYOUTS[base][1]


def layer_devices(model: nn.Module) -> dict[int, torch.device]:
    """Where each attention layer runs, by its place among the others."""
    return {index: reading_device(part.attention) for index, part in enumerate(find_anatomy(model).parts)}


def cache_devices(model: nn.Module) -> dict[int, torch.device]:
    """Where the keys of each layer of a model's cache are made, by its place in the cache."""
    devices, reads = layer_devices(model), find_layout(model).reads
    return {place: devices[index] for index, places in reversed([*enumerate(reads)]) for place in places}


@dataclass
class _Trace:
    """What happened while one token was read."""

    runs: dict[int, int] = field(default_factory=dict)  # how often each attention layer ran
    running: list[int] = field(default_factory=lambda: [-1])
    inside: list[str] = field(default_factory=list)  # the classes of the modules that run, the innermost last
    elsewhere: str = ""  # the class of the last one that attended in no attention layer
    handed: list[tuple[int, int, Tensor]] = field(default_factory=list)  # to which layer, from where, which keys

    def watch(self, cache: Any, anatomy: Anatomy, undo: Undo) -> None:
        update, here = cache.update, threading.get_ident()

        def watched(keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            states = update(keys, values, layer_idx, *args, **kwargs)
            self.handed.append((self.running[-1], layer_idx, states[0]))
            return states

        def enter(index: int, *_: Any) -> None:
            if threading.get_ident() == here:
                self.runs[index] = self.runs.get(index, 0) + 1
                self.running.append(index)

        def leave(*_: Any) -> None:
            if threading.get_ident() == here:
                self.running.pop()

        def go_in(module: nn.Module, *_: Any) -> None:
            if threading.get_ident() == here:
                self.inside.append(type(module).__name__)

        def come_out(*_: Any) -> None:
            if threading.get_ident() == here:
                self.inside.pop()

        cache.update = watched
        for module in anatomy.base.modules():
            undo.hang(module, go_in, before=True)
            undo.hang(module, come_out)
        for index, part in enumerate(anatomy.parts):
            undo.hang(part.attention, partial(enter, index), before=True)
            undo.hang(part.attention, leave)


class _Attending(TorchFunctionMode):
    """Sees which module asks torch itself for attention."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.trace.running[-1] < 0 and self.trace.inside:
            self.trace.elsewhere = self.trace.inside[-1]
        return func(*args, **(kwargs or {}))


@uncompiled()
@torch.no_grad()
def _look(anatomy: Anatomy) -> Layout:
    base: Any = anatomy.base
    everywhere = dict.fromkeys(range(len(anatomy.parts)))
    if not has_config(base) or "input_ids" not in inspect.signature(base.forward).parameters:
        return Layout(everywhere)
    cache, trace = growing_cache(base), _Trace()
    caches = argument_name(base.forward) is not None
    with Undo() as undo:
        trace.watch(cache, anatomy, undo)
        look = look_at(base, undo) if anatomy.interface else Look()
        try:
            with _Attending(trace):
                base(
                    torch.zeros(1, 1, dtype=torch.long, device=reading_device(base)),
                    **(with_cache(base, cache) if caches else {}),
                )
        except SinkscopeError:
            raise
        except Exception as refusal:  # whatever the code of any model may raise at a cache that it does not take
            said = " ".join(str(refusal).split()).rstrip(".")
            return Layout(everywhere, foreign=f"cannot be given transformers' own cache ({said})")
    return _layout(anatomy, cache, trace, look)


def _layout(anatomy: Anatomy, cache: Any, trace: _Trace, look: Look) -> Layout:
    index_of = {part.attention: index for index, part in enumerate(anatomy.parts)}
    reads = [[place for index, place, _ in trace.handed if index == number] for number in range(len(anatomy.parts))]
    windows = {place: growing_window(cache.layers[place]) for _, place, _ in trace.handed}
    natives = {index: windows[places[0]] for index, places in enumerate(reads) if places}
    called = {index_of.get(call.module) for call in look.calls}
    is_followed = not anatomy.interface or all(index in called for index, places in enumerate(reads) if places)
    for call in look.calls:
        index = index_of.get(call.module, -1)
        if index >= 0 and not reads[index]:  # those that another layer made
            reads[index] = [place for _, place, keys in trace.handed if keys is call.key]
        if index < 0 or (windows and not reads[index]):  # attention over something else than the text
            continue
        asked = getattr(call.mask, "asked", None)
        natives[index] = asked.window if asked is not None else windows.get(next(iter(reads[index]), -1))
        windows |= dict.fromkeys(reads[index], natives[index])
        is_followed = is_followed and not call.foreign and (asked is not None or call.mask is None)
    foreign = ""
    if unknown := foreign_layer(cache.layers):
        foreign = f"holds more than keys, values and recurrent states in its cache ({unknown})"
    elif any(index < 0 for index, _, _ in trace.handed):
        foreign = "keeps keys in its cache that no attention layer was seen to make"
    elif any(places and len(places) != trace.runs.get(index, 0) for index, places in enumerate(reads)):
        foreign = "has attention layers that run several times over keys that they make once"
    elif any(held["keys"].shape[2] != 1 for place in windows if (held := held_states(cache, place))):
        foreign = "keeps tokens of its own in its cache, before those that it is given"
    readers = {id(call.key): call.module for call in look.calls}
    strays = [readers.get(id(keys)) for index, _, keys in trace.handed if index < 0]
    named = [type(module).__name__ for module in strays if module is not None and module not in index_of]
    missed = next(iter(named), "a module" if None in strays and anatomy.interface else "")
    missed = missed or (trace.elsewhere if anatomy.interface else "")
    made = {index: keys for index, _, keys in trace.handed}
    seen = [(call.key, made[index_of[call.module]]) for call in look.calls if index_of.get(call.module) in made]
    holds_keys = all((one.shape[1], one.shape[3]) == (other.shape[1], other.shape[3]) for one, other in seen)
    everywhere, places = dict.fromkeys(range(len(anatomy.parts))), dict(sorted(windows.items()))
    return Layout(natives or everywhere, places, tuple(map(tuple, reads)), foreign, missed, holds_keys, is_followed)


# --- reading on ---------------------------------------------------------------------------------------------------

ACAUSAL, WHOLE, TOKENS, BLOCKS = "acausal", "whole", "tokens", "blocks"
SCALED_TOGETHER = "torch.ao.nn.quantized.dynamic"  # scales the activations of all tokens that are read at once together
TEXTS, LENGTH, PARTS = 4, 6, (2, 3, 1)

_READINGS: WeakKeyDictionary[nn.Module, tuple[tuple[int, torch.dtype, float], str]] = WeakKeyDictionary()


def find_reading(model: nn.Module) -> str:
    """How a model reads a text in parts as it reads it whole.

    "blocks" of any size, "tokens" one at a time (also where int8 layers scale together what they are given at once), or
    "whole" only; "acausal" where tokens change what stands before them.
    """
    if looks_for_tokens(model):
        return WHOLE
    base = find_anatomy(model).base
    state = (sum(1 for _ in base.modules()), next(base.parameters()).dtype, coarseness(reading_device(base).type))
    if base not in _READINGS or _READINGS[base][0] != state:
        check_eval(base, "what it reads")
        check_unscoped(base)
        with without_offsets(base):
            reading = _read(base)
        if reading is None:
            return BLOCKS
        _READINGS[base] = (state, reading)
    return _READINGS[base][1]


@uncompiled()
@torch.no_grad()
def _read(base: Any) -> str | None:
    """See `find_reading`; None for a model that gives NaN, of which the losses will tell."""
    if any(type(module).__module__.startswith(SCALED_TOGETHER) for module in base.modules()):
        return TOKENS
    vocabulary, generator = vocabulary_size(base), torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocabulary - 1), vocabulary, (TEXTS, LENGTH), generator=generator)
    ids = ids.to(reading_device(base))
    whole = base(ids)[0]
    if not bool(whole.isfinite().all()):
        return None
    if not _is_same(base(ids[:, : PARTS[0]])[0], whole[:, : PARTS[0]]):
        return ACAUSAL
    if argument_name(base.forward) is None:
        return WHOLE
    for parts, reading in ((PARTS, BLOCKS), ((1,) * LENGTH, TOKENS)):
        try:
            if _is_same(_in_parts(base, ids, parts), whole):
                return reading
        except (RuntimeError, ValueError, IndexError, TypeError):  # code of anybody's, which cannot read on
            continue
    return WHOLE


def _in_parts(base: Any, ids: Tensor, parts: tuple[int, ...]) -> Tensor | None:
    """What a model gives for texts that it reads in parts on its own cache; None where it keeps none."""
    cache, given = None, []
    for part in ids.split(parts, 1):
        output = base(part, **({"use_cache": True} if cache is None else with_cache(base, cache)))
        cache = returned_cache(output)
        if cache is None:
            return None
        given.append(output[0])
    return torch.cat(given, 1)


def _is_same(given: Tensor | None, whole: Tensor) -> bool:
    """Whether two readings of texts [text, token, dim] agree, in one text at least and in most tokens: which experts
    run may be a toss-up."""
    if given is None or given.shape != whole.shape:
        return False
    products = max(torch.finfo(whole.dtype).eps, coarseness(whole.device.type))  # what matrices are multiplied in
    apart, most = (given - whole).float(), max(1e-3, 16 * products)
    gap = apart.abs().flatten(1).amax(1) / whole.float().abs().flatten(1).amax(1)
    by_token = apart.norm(dim=-1) / whole.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    late = by_token[:, PARTS[0] :] if by_token.shape[1] > PARTS[0] else by_token  # the first part is read alike
    return bool(gap.min() < most) and bool(late.median() < most)


def takes_positions(base: Any) -> bool:
    """Whether a model can be told the positions of its tokens."""
    return "position_ids" in inspect.signature(base.forward).parameters
