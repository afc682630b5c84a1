"""The sink + window cache for `generate()`: a conversation without end in a bounded memory.

    cache = SinkCache(model, sinks=4, window=1020)
    model.generate(**inputs, cache=cache)  # past_key_values=cache before transformers 5.24

It keeps the first tokens and the last ones (StreamingLLM; Xiao et al. 2023) with positions counted in the cache, in any
rotary or ALiBi decoder and under any attention implementation: the sinks' keys move along with the text, so queries
are left alone.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.arguments import checks_types
from sinkscope.definition import check_resumable
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import implementation
from sinkscope.hf.caches import (
    argument_name,
    is_recurrent,
    layers_with,
    put_states,
    states_of,
    with_cache,
    without_cache,
)
from sinkscope.hf.generation import is_newly_taken
from sinkscope.hf.models import alibi_limit
from sinkscope.models.cached import find_layout
from sinkscope.models.facts import find_anatomy
from sinkscope.models.identity import difference, identity
from sinkscope.models.requirements import check_decoder, check_unchunked
from sinkscope.models.rotary import changes_with_length, position_ceiling, position_limit, scales_queries
from sinkscope.policies import SinkWindow
from sinkscope.scope.binding import check_limits, reads_in_blocks
from sinkscope.scope.interface import EVICTIONS, NAME
from sinkscope.scope.streams import Told, is_padding
from sinkscope.streaming.arena import layer_kinds
from sinkscope.streaming.store import ArenaLayer, Store, causal_bias, part_of, read_blocks, read_padding
from sinkscope.streaming.texts import check_parts, check_text
from sinkscope.streaming.ties import Tied, check_alone, tie
from sinkscope.tensors import read_tensors, write_tensors

KIND = "sinkscope sink cache 2"


class SinkCache(Tied):
    """The first `sinks` tokens of a text and the last `window`, for `generate()` and for forward passes by hand.

    Greedy search, sampling, beams, batches padded on the left, prompts longer than the cache and any number of turns
    give what reading one token at a time gives. A forward pass with several tokens of which some are evicted while they
    come in is run in parts, and its outputs are those of the last token only, which is what `generate()` reads. Layers
    with a native sliding window beside full ones keep their own window.

    While a cache is open its model carries functions that look out for it, and compiled code runs eagerly. `close()`,
    the end of a `with` block, or the end of the cache takes them off. Memory is allocated when the first tokens come
    and stays as it is. A forward pass that fails or is interrupted leaves the cache as it was, or, if it was run in
    parts, as the last finished part left it; where there are recurrent states beside the keys, which run on with every
    token, it has to be reset. No gradient flows into the tokens kept.

    >>> with sinkscope.SinkCache(model, sinks=2, window=14) as cache:
    ...     answer = model.generate(ids[:1, :30], cache=cache, max_new_tokens=4, do_sample=False)

    Args:
        model: a transformers decoder in eval mode.
        sinks: first tokens that are never evicted.
        window: last tokens kept beside them.

    Raises:
        SinkscopeError: sinks < 0 or window < 1; absolute positions, attention in chunks, an encoder; a rotation that
            changes with length within the cache. Later, before anything is touched: another model or batch size,
            a prompt that does not continue what was read, a mask that is not padding on the left, `crop`.
    """

    def __init__(self, model: nn.Module, sinks: int = 4, window: int = 1020) -> None:
        policy, anatomy = SinkWindow(sinks, window), find_anatomy(model)
        check_decoder(model)
        check_unchunked(model)
        check_limits(model, policy, sys.maxsize)
        self.policy, self._model_name = policy, type(model).__name__
        self._limit = _checked_ceiling(model, policy)
        limits, rebases = [limit for limit in (self._limit, position_limit(model)) if limit], not scales_queries(model)
        self._store = Store(layer_kinds(model, policy), sinks, window, min(limits, default=None), rebases)
        forward = anatomy.base.forward
        self._names, self._own_name = tuple(inspect.signature(forward).parameters), argument_name(forward) or ""
        windows = find_layout(model).windows
        # where every layer slides in a window that would hide the sinks, a mask takes its place
        is_narrow = any(own <= sinks + window for own in windows.values() if own)
        self._overrides_windows = is_narrow and all(windows.values())
        self._has_interface, self._in_blocks = anatomy.interface, reads_in_blocks(model)
        arenas = {place: ArenaLayer(self._store, layer) for layer, place in enumerate(windows)}
        super().__init__(layers=layers_with(model, arenas))
        self._is_recurrent = any(map(is_recurrent, self.layers))
        self._is_reading = False  # a forward pass that recurrent states follow; one that fails leaves it so
        self._model, self._base = weakref.ref(model), weakref.ref(anatomy.base)
        self._dtype = next(anatomy.base.parameters()).dtype
        self._undo = tie(self, model, anatomy.base)

    # --- what a reader may ask ------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Tokens kept at most."""
        return self._store.size

    @property
    def seen(self) -> int:
        """Tokens read so far, padding included."""
        return self._store.seen

    @property
    def held(self) -> int:
        """Tokens kept now."""
        return min(self.seen, self.size)

    @property
    def nbytes(self) -> int:
        """Bytes allocated: none before the first tokens come, then always the same."""
        return self._store.nbytes

    @property
    def is_closed(self) -> bool:
        """Whether the cache is off its model."""
        return not self._undo.is_entered

    @property
    def batch_size(self) -> int:
        """Texts read side by side; -1 before the first tokens come."""
        return self._store.batch or -1

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"{self.held} of {self.size} tokens held, {self.seen} seen"
        return f"SinkCache({self._model_name}, sinks={self._store.sinks}, window={self._store.window}; {state})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SinkCache:
        """A cache of its own that holds the same tokens, as for several answers to one prompt."""
        other = SinkCache.__new__(SinkCache)
        memo[id(self)] = other
        vars(other).update(copy.deepcopy({name: held for name, held in vars(self).items() if name != "_undo"}, memo))
        model, base = self._model(), self._base()
        other._undo = self._undo if self.is_closed or model is None or base is None else tie(other, model, base)
        return other

    # --- its life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the cache off its model."""
        self._undo.close()

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self._store.forget()
        put_states(self, {})
        self._is_reading = False

    @checks_types
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the cache to a safetensors file; an older one is replaced in one step.

        Raises:
            SinkscopeError: nothing was read yet, or the file cannot be written.
        """
        model, store = self._model(), self._store
        if not store.seen or model is None:
            raise SinkscopeError("there is nothing to save: this cache has read no tokens, or its model is gone.")
        who = identity(model)
        check_resumable(who, "a cache cannot be saved")
        settings = {
            "identity": who,
            "sinks": store.sinks,
            "window": store.window,
            "seen": store.seen,
            "pads": store.pads,
        }
        about = {"settings": json.dumps(settings)}
        write_tensors(Path(path), "the cache", KIND, store.tensors() | states_of(self) | {"ids": store.recent}, about)
        return Path(path)

    @classmethod
    @checks_types
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> SinkCache:
        """The cache that `save` wrote, to go on with on the same model.

        Raises:
            SinkscopeError: no such file, a torn one, or one of another model.
        """
        if not os.path.isfile(path):
            raise SinkscopeError(f"there is no cache at {Path(path)}.")
        tensors, about = read_tensors(Path(path), "the cache", KIND, "save it again")
        settings = json.loads(about["settings"])
        if other := difference(settings["identity"], identity(model)):
            raise SinkscopeError(
                f"{path} was saved with a {settings['identity']['model']}, and this {type(model).__name__} is another: "
                f"{other}; load it with the model it was made for.",
                page="A cache in generate()",
            )
        cache = cls(model, sinks=settings["sinks"], window=settings["window"])
        store, ids = cache._store, tensors.pop("ids")
        store.allocate(len(ids))
        store.set_pads(settings["pads"])
        store.load_tensors(tensors, settings["seen"])
        store.recent.copy_(ids)
        put_states(cache, tensors, store.kinds[0].device)
        return cache

    # --- what transformers asks -----------------------------------------------------------------------------------

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Keys before the first new one, in the widest layer."""
        return self._store.width(1) - 1 if self._store.seen else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each row the text of the row in `beam_idx`."""
        self._select(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each text, as for several answers to one prompt."""
        self._select(lambda states: states.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some of the texts."""
        self._select(lambda states: states[indices.to(states.device)])

    def _select(self, chosen: Callable[[Tensor], Tensor]) -> None:
        self._store.select(chosen)
        put_states(self, {name: chosen(state) for name, state in states_of(self).items()})

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was evicted cannot come back.

        Raises:
            SinkscopeError: always.
        """
        raise SinkscopeError(
            "a SinkCache cannot be rolled back, since evicted tokens are gone; generate without assistant_model and "
            "prompt_lookup_num_tokens."
        )

    def activate_past_recording(self) -> None:
        """Refused, as `crop` is: assisted decoding asks for it first."""
        self.crop(0)

    # --- what its model shows it ----------------------------------------------------------------------------------

    def before_generation(self, ids: Tensor, new: int | None) -> None:
        """Refuse a prompt that does not continue what was read, before `generate()` takes a part of it for new."""
        store = self._store
        if not store.seen or not ids.shape[1]:
            return
        self._check_batch(len(ids))
        if new is None:  # only new tokens were given
            return
        if new <= 0:
            raise SinkscopeError(
                f"the prompt has {ids.shape[1]} tokens, but this cache has read {store.seen} already; give the whole "
                "conversation with something new at its end, or reset() the cache for another one."
            )
        if not store.continues(ids):
            raise SinkscopeError(
                f"the prompt does not continue the {store.seen} tokens that this cache has read; give the same ids and "
                "new ones behind them, or reset() the cache for another text."
            )

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], told: Told
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with which the model sees what is kept as if it were its whole text."""
        given = without_cache(dict(zip(self._names, args, strict=False)) | kwargs)
        store, ids, mask = self._store, told.completed(given).get("input_ids"), told.mask_of(given)
        if mask is None or is_padding(mask):
            check_text(module, given, mask)
        given["attention_mask"] = mask
        batch, count = self._checked(module, given)
        pads = read_padding(mask, store.seen, batch, count, store.pads)
        store.allocate(batch)
        store.set_pads(pads)
        evicts = store.seen + count > store.size + 1  # while they come in
        in_parts = evicts or count > (self._limit or count) or (store.seen > 0 and not self._in_blocks)
        if count > 1 and in_parts:
            self._check_padding(pads)
            self._read(module, given, ids, count - 1)
            given, count = given | part_of(given, count - 1, count), 1
            ids = None if ids is None else ids[:, -1:]
            store.set_pads(pads)
        store.advance(count, ids)
        self._is_reading = self._is_recurrent
        return (), given | self._view(count)

    def after_forward(self) -> None:
        """The model has read what it was given."""
        self._is_reading = False

    def _check_padding(self, pads: list[int] | None) -> None:
        """Refuse padding where recurrent states would follow it: the model hides it from them in one pass only."""
        if self._is_recurrent and pads and max(pads) > self.seen:
            raise SinkscopeError(
                f"{self._model_name} has recurrent states, and hides padding from them only when it reads it in one "
                "pass, but this prompt is longer than the cache; give its texts one by one, or a larger window."
            )

    @torch.no_grad()
    def _read(self, base: nn.Module, given: dict[str, Any], ids: Tensor | None, count: int) -> None:
        """Read the first `count` tokens: in blocks where attention can follow a policy, or else one by one."""
        check_parts(base, given)
        store, mask, seen = self._store, given.get("attention_mask"), self.seen
        one_device = len({kind.device for kind in store.kinds}) == 1
        can_follow = self._in_blocks and implementation(base) != NAME and find_anatomy(base).interface
        if store.pads is None and one_device and can_follow:
            self._is_reading = self._is_recurrent
            read_blocks(base, store, self, given, ids, count)
            self._is_reading = False
            return
        for at in range(count):
            masked = {} if mask is None else {"attention_mask": mask[:, : seen + at + 1]}
            base(**part_of(given, at, at + 1), **masked, **with_cache(base, self))
        store.remember(seen, count, None if ids is None else ids[:, :count])

    def _view(self, count: int) -> dict[str, Any]:
        """The arguments with which the model reads `count` new tokens behind what is kept."""
        store, device = self._store, self._store.kinds[0].device
        view: dict[str, Any] = {self._own_name: self, "attention_mask": None, "use_cache": True}
        if "position_ids" in self._names:
            view["position_ids"] = store.positions(count)
        visible = store.visible(count)
        if self._overrides_windows:
            view["attention_mask"] = causal_bias(store, count, visible)
        elif visible is not None:
            view["attention_mask"] = visible.long()
        elif not self._has_interface:  # they count the tokens before by the mask, or else by how many were ever read
            view["attention_mask"] = torch.ones(store.batch or 1, store.width(count), dtype=torch.long, device=device)
        return {name: value for name, value in view.items() if name in self._names}

    def _checked(self, module: nn.Module, given: dict[str, Any]) -> tuple[int, int]:
        """The number of texts and of new tokens in each, if this cache can take them in."""
        if self.is_closed:
            raise SinkscopeError("this cache is closed; make a new SinkCache, or keep the `with` block open.")
        if self._is_reading:
            raise SinkscopeError(
                "this cache was interrupted while it read, and its recurrent states have run on; reset() it first."
            )
        if self._base() is not module:
            raise SinkscopeError(
                f"this cache was made for another model, a {self._model_name}; make a SinkCache for this one."
            )
        if implementation(module) == NAME and any(part.attention in EVICTIONS for part in find_anatomy(module).parts):
            raise SinkscopeError("this model carries a policy already; use either `attached` or a SinkCache, not both.")
        dtype = next(module.parameters()).dtype
        if dtype != self._dtype:
            raise SinkscopeError(
                f"this cache was made when the model was {self._dtype}, now it is {dtype}; make a new one."
            )
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None or tokens.shape[1] == 0:
            raise SinkscopeError("the model was called with nothing new to read; give it input_ids of the new tokens.")
        if is_newly_taken(self) and self._store.seen:
            check_alone(self)
            raise SinkscopeError(
                f"generate() was called on a model around the {self._model_name} that this cache was made for, so its "
                f"prompt cannot be compared with the {self._store.seen} tokens read; make the SinkCache for that model."
            )
        if self._store.seen:
            self._check_batch(len(tokens))
        return tokens.shape[0], tokens.shape[1]

    def _check_batch(self, batch: int) -> None:
        if batch != self._store.batch:
            raise SinkscopeError(
                f"this cache holds {self._store.batch} texts side by side, and was given {batch}; reset() it, or use "
                "batch_repeat_interleave or batch_select_indices (beams and num_return_sequences need a row each)."
            )


def _checked_ceiling(model: Any, policy: SinkWindow) -> int | None:
    """Positions from which on the model fails or changes its rotation, or None when there is no such limit.

    Raises:
        SinkscopeError: the cache itself is longer than the model can look back.
    """
    needed = policy.sinks + policy.window + 1
    limit = position_limit(model) if changes_with_length(model) else None
    for most, what in ((alibi_limit(model), "has ALiBi distances"), (limit, "keeps its rotary frequencies")):
        if most and needed > most:
            raise SinkscopeError(
                f"{type(model).__name__} {what} for {most} tokens, and {needed} are needed by sinks={policy.sinks}, "
                f"window={policy.window} and the token being read; take a smaller window."
            )
    return position_ceiling(model)
