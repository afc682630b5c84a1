"""A model with a text, read under one configuration after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.attention.layer import Layer
from sinkscope.attention.masks import ranges
from sinkscope.attention.placement import is_built_in, owner
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.overview import free_scores, thumbnails
from sinkscope.explorer.pixels import FIRST
from sinkscope.explorer.prefix import LEAST, Passed, Prefix, Watch, written
from sinkscope.explorer.results import (
    Ahead,
    Continuation,
    Guesses,
    LayerRecorder,
    LiveMaps,
    Overview,
    Price,
    Reading,
    Result,
    Wanted,
)
from sinkscope.hf.caches import with_cache
from sinkscope.hf.generation import end_ids
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy, find_streams
from sinkscope.models.requirements import check_decoder, check_unscoped, not_finite
from sinkscope.models.weights import weights_hash
from sinkscope.policies import Dense
from sinkscope.probes import Norms, SinkMass
from sinkscope.scope.binding import limit_notes
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.scope import Scope, attached
from sinkscope.streaming.cost import cost
from sinkscope.streaming.readers import WindowReader, only_last
from sinkscope.streaming.reading_cache import ReadingCache, reading_cache
from sinkscope.tokens import decoder

RANKS = 16  # next tokens kept for each query
CHUNK = 256  # rows of logits looked at together
WRITTEN = 24  # tokens of a continuation
WRITTEN_AFRESH = 8  # where every token costs a whole window
SAMPLED = 32  # tokens scored under re-computation behind the first window
WINDOW_TOKENS = 1024  # tokens of windows run together


class Overtaken(BaseException):
    """Nobody wants the result any more; no error, which whoever tries what a model can do would take for a refusal."""


class TextModel:
    """A copy of a model that shares its weights, with a text: `ids` [token].

    The model itself, a decoder with a language head, is neither changed nor run. Without a tokenizer continuations are
    shown as ids. What a processor made `beside` the ids of a text with images is read with them, all at once.
    SinkscopeError for a model that predicts no next token or carries a scope, ids outside its vocabulary, fewer than
    two tokens.
    """

    def __init__(
        self, model: nn.Module, ids: Tensor, tokenizer: Any = None, beside: Mapping[str, Any] | None = None
    ) -> None:
        check_decoder(model, predicts=True)
        check_unscoped(find_anatomy(model).base)
        if len(ids) < 2:
            raise SinkscopeError("a text of one token has no map and nothing to predict; give two tokens at least.")
        self.original = model
        self.model = copy_sharing_weights(model).eval()
        self.anatomy, self._stream = find_anatomy(self.model), next(iter(find_streams(self.model)))
        check_vocabulary(self.anatomy.base, ids)
        self.ids = ids.to(reading_device(self.model))
        self.tokenizer = tokenizer
        given = (beside or {}).items()
        self.beside = {name: each.to(self.ids.device) if isinstance(each, Tensor) else each for name, each in given}
        self._is_overtaken: Callable[[], bool] = lambda: False
        self._wanted: Wanted | None = None
        self._losses_afresh: tuple[Any, np.ndarray] = (None, np.empty(0))  # of a configuration and weights
        self._prefix: Prefix | None = None  # of the model as it is
        self._untold = 0  # how often weights turned out to be others, of which torch had told nothing
        self._watch = Watch(self.model)
        self._doubted: Tensor | None = None  # states of the text, when they last seemed to
        self._identity: tuple[Any, str] = (None, "")
        # somebody's code may go by a token's place in what a layer is given
        self._is_hooked = any(
            each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in self.model.modules()
        )
        self._outputs: Any = None  # of the layers, in the forward pass under way
        self._kind_of_outputs: Callable[..., Any] = dict
        self.anatomy.base.register_forward_hook(self._take_outputs)
        for part in self.anatomy.parts:
            (part.layer or part.attention).register_forward_pre_hook(self._check)

    @property
    def identity(self) -> str:
        """What tells the model from others, its weights as they are now among it."""
        now = self.weights
        if self._identity[0] != now:
            self._identity = now, f"{type(self.original).__name__} {weights_hash(self.model)}"
        return self._identity[1]

    @property
    def weights(self) -> Any:
        """What tells the weights as they are now from earlier ones, as far as it is known that those were others."""
        return self._untold, written(self.model)

    def look_at_weights(self) -> None:
        """Take note of weights that were changed behind torch's back, as by `.data`, since this was called last."""
        if self._watch.changed():
            self._untold, self._prefix = self._untold + 1, None

    @torch.no_grad()
    def read(
        self, configuration: Configuration, query: int, is_overtaken: Callable[[], bool], wanted: Wanted | None = None
    ) -> Iterator[Result]:
        """Read the text: first the `Reading`, then the `Overview`, the `Price`, and more and more `Continuation`.

        Args:
            query: the token whose window is mapped under re-computation, which has no map of the whole text.
            is_overtaken: asked before every layer; once it says True nothing more comes.
            wanted: the layer whose maps are told of as soon as it has been computed, before the ones behind it.

        Raises:
            SinkscopeError: a configuration that this model, or this text, cannot be read under.
        """
        self._is_overtaken = is_overtaken
        self._wanted = wanted
        configuration.check(len(self.ids))
        if self.beside and configuration.is_recomputed:
            raise SinkscopeError(
                f"`{configuration.policy_slot.name}` reads windows of a text, and here the text stands beside "
                f"{', '.join(self.beside)}; give another policy."
            )
        with suppress(Overtaken):
            if configuration.is_recomputed:
                yield from self._recomputed(configuration, query)
            else:
                yield from self._whole(configuration)

    @torch.no_grad()
    def write(self, configuration: Configuration, count: int, is_overtaken: Callable[[], bool]) -> Iterator[int]:
        """The likeliest tokens behind the text, one by one, under a configuration: `count`, or up to one that ends it.

        Raises:
            SinkscopeError: a text beside an image, or a configuration that cannot be read.
        """
        self._is_overtaken, self._wanted = is_overtaken, None
        if self.beside:
            raise SinkscopeError(f"here the text stands beside {', '.join(self.beside)}; use the model's generate().")
        ends, policy = end_ids(self.model), configuration.policy_slot
        with suppress(Overtaken):
            if configuration.is_recomputed:
                steps = self._steps_afresh(configuration)
            else:
                cache = reading_cache(self.model, policy)
                steps = self._cached_steps(configuration, cache, self._measured(configuration, self.ids, cache).last)
            with closing(steps):  # type: ignore[type-var]
                for token in islice(steps, count):
                    yield token
                    if token in ends:
                        return

    def _take_outputs(self, base: nn.Module, given: Any, outputs: Any) -> None:
        self._outputs, self._kind_of_outputs = outputs, type(outputs)

    def _check(self, *_: Any) -> None:
        if self._is_overtaken():
            raise Overtaken

    def _whole(self, configuration: Configuration) -> Iterator[Result]:
        notes = limit_notes(self.model, configuration.policy_slot, len(self.ids))
        now = written(self.model)
        passed, cache = self._continued(configuration) or self._from_the_start(configuration)
        layers, record, last, logits, hidden = passed
        maps = LiveMaps(layers, self.anatomy.numbers)
        reading = Reading.unscored(configuration, maps, record, RANKS, " ".join(notes), (self._untold, now))
        if hidden is not None:  # the map need not wait for the head
            yield reading
        losses, guesses = self._scored(logits)
        yield replace(reading, losses=losses, guesses=guesses, is_scored=True)
        del logits, passed  # which may hold those of the whole text
        yield from self._beside(configuration, maps, record)
        if configuration.is_baseline and hidden is not None and not self._is_hooked:
            if self._doubted is not None and torch.equal(self._doubted, hidden):
                self._is_hooked = True  # weights were the same: this model reads on otherwise than it reads a whole
            else:
                self._prefix = Prefix.of(self.model, self.ids, layers, cache, hidden, record)
        steps = self._generated(configuration) if cache is None else self._cached_steps(configuration, cache, last)
        yield from self._continuation(configuration, steps, WRITTEN)

    def _from_the_start(self, configuration: Configuration) -> tuple[Passed, ReadingCache | None]:
        cache = None if self.beside else reading_cache(self.model, configuration.policy_slot)
        return self._measured(configuration, self.ids, cache), cache

    def _continued(self, configuration: Configuration) -> tuple[Passed, ReadingCache] | None:
        """A reading that goes on where a policy begins to act; None where the whole text has to be read."""
        prefix, policy = self._prefix, configuration.policy_slot
        knows = is_built_in(owner(type(policy), "bind"))  # another one may act earlier than `sees` tells
        if prefix is None or configuration.is_baseline or policy.remembers or not knows:
            return None
        first = min(configuration.first_affected(len(self.ids)), len(self.ids)) - 1  # one more, to see that it agrees
        if first < LEAST or not prefix.is_of(self.model, self.ids):
            return None
        cache = prefix.cache(self.model, first, self.ids.device)
        late = self._measured(configuration, self.ids[first:], cache)
        if late.hidden is None:
            return None
        if not prefix.agrees(late.hidden, first):
            self._prefix, self._doubted, self._untold = None, prefix.hidden, self._untold + 1
            return None
        hidden = torch.cat([prefix.hidden[:, :first], late.hidden], 1)
        whole = late._replace(
            layers=prefix.joined(late.layers, first),
            record=prefix.completed(late.record, first, self.model),
            logits=lambda rows: self._headed(hidden, rows),
            hidden=hidden,
        )
        return whole, cache

    def _measured(self, configuration: Configuration, ids: Tensor, cache: ReadingCache | None) -> Passed:
        policy = None if configuration.is_recomputed else configuration.policy_slot
        seen = 0 if cache is None else cache.seen
        recorder = LayerRecorder(lambda layers: self._tell_ahead(configuration, layers, seen))
        probes = [recorder, SinkMass(first=min(FIRST, seen + len(ids))), Norms()]
        arguments: dict[str, Any] = {**self.beside, "use_cache": False}
        if cache is not None:
            arguments = {**with_cache(self.model, cache), **cache.positions(len(ids), ids.device)}
        splits = self._splits
        with Scope(self.model, probes, configuration.normaliser_slot, policy, stream=self._stream) as scope:
            scope.goes_on = seen > 0
            logits = self.model(ids[None], **arguments, **(only_last(self.model) if splits else {})).logits[0]
            record = scope.record
        hidden = self._outputs.last_hidden_state if splits else None
        self._outputs = None
        told = logits.__getitem__ if hidden is None else lambda rows: self._headed(hidden, rows)
        return Passed(recorder.layers, record, logits[-1].clone(), told, hidden)

    def _tell_ahead(self, configuration: Configuration, layers: list[Layer], seen: int) -> None:
        """Tell of the maps of the last of the layers, if it is wanted; behind a prefix, where that agrees."""
        place, layer = len(layers) - 1, layers[-1]
        number = self.anatomy.numbers[place]
        if self._wanted is None or self._wanted.layer != number or configuration.is_recomputed:
            return
        whole = layer if not seen else self._prefix.ahead(layer, place, seen) if self._prefix is not None else None
        if whole is not None:
            self._wanted.tell(Ahead(configuration, LiveMaps([whole], [number])))

    @cached_property
    def _splits(self) -> bool:
        """Whether the head alone makes the model's logits of the states behind the last layer; tried on two tokens."""
        if self.beside or not only_last(self.model):
            return False
        whole = self.model(self.ids[None, :2], use_cache=False).logits[0]
        hidden = getattr(self._outputs, "last_hidden_state", None)
        if not isinstance(hidden, Tensor) or hidden.shape[:2] != (1, 2):
            return False
        try:
            found = self._headed(hidden, slice(0, 2))
        except Exception:  # a head that looks at more than these states
            return False
        return torch.equal(found, whole)

    def _headed(self, hidden: Tensor, rows: slice) -> Tensor:
        """Logits [row, vocabulary] of some of the states behind the last layer."""
        base = self.anatomy.base
        given = self._kind_of_outputs(last_hidden_state=hidden[:, rows])
        own = vars(base).get("forward")
        base.forward = lambda *_, **__: given
        try:
            return self.model(self.ids[None, rows], use_cache=False).logits[0]
        finally:
            self._outputs = None
            del base.forward
            if own is not None:
                base.forward = own

    def _scored(self, logits: Callable[[slice], Tensor]) -> tuple[np.ndarray, Guesses]:
        """Losses [token] of predicting each from those before it, and the guesses at each query."""
        losses, ids, shares = [np.full(1, np.nan, dtype=np.float32)], [], []  # nothing predicts the first token
        targets = self.ids.roll(-1)
        for part in ranges(0, len(self.ids), CHUNK):
            rows = logits(part).float()
            total = rows.logsumexp(-1)
            if not bool(total.isfinite().all()):
                raise not_finite(f"the logits at tokens {part.start} to {part.stop - 1}", self.model)
            best = rows.topk(min(RANKS, rows.shape[-1]), -1)
            losses.append((total - rows.gather(-1, targets[part, None])[:, 0]).cpu().numpy())
            ids.append(best.indices.cpu().numpy())
            shares.append((best.values - total[:, None]).exp().cpu().numpy())
        return np.concatenate(losses)[:-1], Guesses(np.concatenate(ids), np.concatenate(shares))

    def _beside(self, configuration: Configuration, maps: LiveMaps, record: Any) -> Iterator[Overview | Price]:
        units, scores = thumbnails(maps.layers, self._check)
        yield Overview(configuration, units, scores | free_scores(record))
        policy = configuration.policy_slot
        kept = Dense() if policy.is_partial else policy  # beside dense layers the cache holds all tokens
        try:
            found = cost(self.model, kept, len(self.ids))
            yield Price(configuration, found.kv_bytes, found.flops_per_token)
        except SinkscopeError as problem:  # what can be read need not have a cost that can be told
            yield Price(configuration, 0, 0, unknown=str(problem))

    def _cached_steps(self, configuration: Configuration, cache: ReadingCache, last: Tensor) -> Iterator[int]:
        slots: dict[str, Any] = {"policy": configuration.policy_slot, "normaliser": configuration.normaliser_slot}
        scope: Any = nullcontext() if configuration.is_baseline else attached(self.model, **slots)
        with scope:
            while True:
                token = last.argmax()
                yield int(token)
                positions = cache.positions(1, token.device)
                last = self.model(token[None, None], **with_cache(self.model, cache), **positions).logits[0, -1]

    def _generated(self, configuration: Configuration) -> Iterator[int]:
        """Tokens by the model's own `generate`, which knows how it goes on behind an image."""
        with attached(self.model, policy=configuration.policy_slot, normaliser=configuration.normaliser_slot):
            written: Any = self.model.generate(  # type: ignore[operator]
                self.ids[None], **self.beside, max_new_tokens=WRITTEN, do_sample=False, num_beams=1
            )
        yield from written[0, len(self.ids) :].tolist()

    def _recomputed(self, configuration: Configuration, query: int) -> Iterator[Result]:
        policy, tokens = configuration.policy_slot, len(self.ids)
        assert policy.cache_size is not None
        notes = limit_notes(self.model, policy, tokens)
        first = max(0, query - policy.cache_size + 1)
        layers, record, last, *_ = self._measured(configuration, self.ids[first : query + 1], None)
        maps, best = LiveMaps(layers, self.anatomy.numbers, first), last.float().softmax(-1).topk(min(RANKS, len(last)))
        guesses = Guesses.unknown(tokens, len(best.values))
        guesses.ids[query], guesses.probabilities[query] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        known, losses = self._losses_afresh
        asked = configuration, self.weights
        if known != asked:
            losses = np.full(tokens, np.nan, dtype=np.float32)
        note = (
            "re-computation has maps of its own for every query: these are of the window of tokens "
            f"{first} to {query}; its losses are those of the first window and of a sample behind it"
        )
        reading = Reading(configuration, maps, losses, guesses, record, ". ".join([*notes, note]), True, asked[1])
        yield reading
        yield from self._beside(configuration, maps, record)
        if known != asked:
            for losses in self._losses_recomputed(configuration):
                yield replace(reading, losses=losses)
            self._losses_afresh = (asked, losses)
        yield from self._continuation(configuration, self._steps_afresh(configuration), WRITTEN_AFRESH)

    def _losses_recomputed(self, configuration: Configuration) -> Iterator[np.ndarray]:
        policy, normaliser = configuration.policy_slot, configuration.normaliser_slot
        size, last = policy.cache_size, len(self.ids) - 1
        assert size is not None
        early = np.arange(min(size, last))
        late = np.linspace(size, last - 1, SAMPLED).astype(int) if size < last else early[:0]
        queries = torch.from_numpy(np.union1d(early, late))
        rows = max(1, WINDOW_TOKENS // size)
        losses = np.full(len(self.ids), np.nan, dtype=np.float32)
        for step in WindowReader(self.model, self.ids[None], policy, queries, rows, normaliser).steps():
            losses = losses.copy()  # what was handed over stays as it was
            losses[step.tokens.numpy()] = step.losses[0].numpy()
            yield losses

    def _steps_afresh(self, configuration: Configuration) -> Iterator[int]:
        window, ids = configuration.policy_slot.cache_size, self.ids
        assert window is not None
        with attached(self.model, normaliser=configuration.normaliser_slot):
            while True:
                outputs = self.model(ids[None, -window:], use_cache=False, **only_last(self.model))
                token = outputs.logits[0, -1].argmax()
                yield int(token)
                ids = torch.cat([ids, token[None]])

    def _continuation(self, configuration: Configuration, steps: Iterator[int], count: int) -> Iterator[Continuation]:
        written: list[int] = []
        for token in islice(steps, count):
            written.append(token)
            text = str(written) if self.tokenizer is None else decoder(self.tokenizer)(written)
            yield Continuation(configuration, text, len(written) == count)
        steps.close()  # type: ignore[attr-defined]


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its parameters and buffers.

    What is hung on the copy, or set in it, does not touch the model, which another thread may be using.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)
