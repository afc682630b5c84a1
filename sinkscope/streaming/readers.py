"""Ways to read a batch of texts under a policy: step by step, each step giving the losses of some tokens.

The loss of a token is that of predicting it from what the policy kept of the tokens before it, in nats.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import with_cache
from sinkscope.hf.images import without_offsets
from sinkscope.hf.placement import reading_device
from sinkscope.models.cached import find_layout
from sinkscope.models.requirements import not_finite
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy
from sinkscope.scope.binding import goes_by_token, reads_in_blocks
from sinkscope.scope.scope import Scope
from sinkscope.streaming.reading_cache import KeptKeys, reading_cache
from sinkscope.streaming.sink_cache import SinkCache


class Step(NamedTuple):
    """What one step scored."""

    tokens: Tensor  # [scored] places of the tokens in the text
    losses: Tensor  # [sequence, scored] float32, nats
    done: int  # how far the reader is, for `Reader.resume`


class Reader(ABC):
    """A batch of texts [sequence, token] being read under a policy.

    Attributes:
        look: is shown the logits [sequence, query, vocabulary] of each step, with the places [query] they are from.
    """

    look: Callable[[Tensor, Tensor], None] | None = None

    def __init__(self, model: nn.Module, ids: Tensor, policy: Policy) -> None:
        self.model, self.ids, self.policy = model, ids.to(reading_device(model)), policy
        self.done = 0

    @abstractmethod
    def steps(self) -> Iterator[Step]:
        """Read on from where it stands."""

    def _scored(self, logits: Tensor, queries: Tensor, done: int) -> Step:
        if self.look is not None:
            self.look(logits, queries)
        return scored(self.model, logits, self.ids, queries, done)

    def state(self) -> dict[str, Tensor]:
        """What has to be kept to read on later."""
        return {}

    def resume(self, done: int, state: dict[str, Tensor]) -> None:
        """Stand where an earlier reader of the same texts stood."""
        self.done = done


class BlockReader(Reader):
    """Dense, window and sink window: `block` tokens per forward pass, exact whatever their number."""

    def __init__(
        self, model: nn.Module, ids: Tensor, policy: Policy, block: int, normaliser: Normaliser | None = None
    ) -> None:
        super().__init__(model, ids, policy)
        self.block, self.normaliser = block, normaliser
        self.cache = reading_cache(model, policy) if reads_in_blocks(model) else None
        self._resumes = self.cache is not None and (not policy.remembers or isinstance(self.cache, KeptKeys))
        # a dense policy needs no scope where the model's attention is out of reach
        is_reached = not goes_by_token(model) and not find_layout(model).foreign
        self._is_scoped = is_reached or not policy.is_dense or normaliser is not None

    @torch.no_grad()  # not inside: a generator that stops there would leave its caller, or another thread, without
    def steps(self) -> Iterator[Step]:
        last = self.ids.shape[1] - 1  # the last token predicts nothing that is there
        scope = Scope(self.model, (), self.normaliser, self.policy, alone=True) if self._is_scoped else None
        with without_offsets(self.model), scope or nullcontext():
            while self.done < last:
                if scope is not None:
                    scope.move_here()  # where the next block is asked for
                start, stop = self.done, min(self.done + self.block, last)
                logits = self._logits(start, stop)
                if scope is not None and scope.own_mask and stop - start < last:
                    raise SinkscopeError(
                        f"{scope.own_mask} makes its mask of what is read with it, such as a choice among keys, and so "
                        f"losses of {type(self.model).__name__} depend on how many tokens are read at once; it can be "
                        "measured with sinkscope.capture, but not streamed."
                    )
                self.done = stop
                yield self._scored(logits, torch.arange(start, stop), stop)

    def _logits(self, start: int, stop: int) -> Tensor:
        """Logits [sequence, token, vocabulary] of the next tokens."""
        if self.cache is None:  # the text is read whole, its last token too: some choose keys by how many there are
            return self.model(self.ids).logits[:, start:stop]
        given = with_cache(self.model, self.cache) | self.cache.positions(stop - start, self.ids.device)
        return self.model(self.ids[:, start:stop], **given).logits

    def state(self) -> dict[str, Tensor]:
        return self.cache.tensors() if self._resumes and self.cache is not None else {}

    def resume(self, done: int, state: dict[str, Tensor]) -> None:
        # else from the start: what some heads remember of their attention is not in the cache
        if self._resumes and self.cache is not None:
            super().resume(done, state)
            self.cache.load_tensors(state, done, self.ids.device)


class WindowReader(Reader):
    """Re-computation: every window of tokens is a text of its own, `rows` of them per forward pass.

    Args:
        queries: [window] places of the tokens that predict, ascending.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: Tensor,
        policy: Policy,
        queries: Tensor,
        rows: int,
        normaliser: Normaliser | None = None,
    ) -> None:
        super().__init__(model, ids, policy)
        assert policy.kept is not None
        self.queries, self.rows, self.size, self.normaliser = queries, rows, policy.kept.last, normaliser

    @torch.no_grad()
    def steps(self) -> Iterator[Step]:
        early = self.queries[self.queries < self.size]  # their windows still reach back to the first token
        scope = None if self.normaliser is None else Scope(self.model, (), self.normaliser, alone=True)
        with scope or nullcontext():
            if self.done == 0 and len(early):
                logits = self.model(self.ids[:, : int(early[-1]) + 1], use_cache=False).logits[:, early]
                self.done = len(early)
                yield self._scored(logits, early, self.done)
            while self.done < len(self.queries):
                if scope is not None:
                    scope.move_here()
                queries = self.queries[self.done : self.done + self.rows]
                self.done += len(queries)
                yield self._scored(self._last_logits(queries), queries, self.done)

    def _last_logits(self, queries: Tensor) -> Tensor:
        """Logits [sequence, query, vocabulary] of the last token of each window."""
        places = (queries[:, None] + torch.arange(1 - self.size, 1)).to(self.ids.device)
        windows = self.ids[:, places].flatten(0, 1)
        logits = self.model(windows, use_cache=False, **only_last(self.model)).logits[:, -1]
        return logits.unflatten(0, (len(self.ids), len(queries)))


class TokenReader(Reader):
    """One token per forward pass, for families whose attention cannot be given a policy. It resumes from the start."""

    def __init__(self, model: nn.Module, ids: Tensor, policy: Policy) -> None:
        super().__init__(model, ids, policy)
        assert policy.kept is not None
        self.cache = SinkCache(model, *policy.kept)

    @torch.no_grad()
    def steps(self) -> Iterator[Step]:
        with self.cache:
            for at in range(self.ids.shape[1] - 1):
                token = self.ids[:, at : at + 1]
                logits = self.model(token, **with_cache(self.model, self.cache)).logits
                yield self._scored(logits, torch.tensor([at]), at + 1)

    def resume(self, done: int, state: dict[str, Tensor]) -> None:
        pass


def scored(model: nn.Module, logits: Tensor, ids: Tensor, queries: Tensor, done: int) -> Step:
    """Losses of the tokens after the queries, from their logits [sequence, query, vocabulary]."""
    tokens = queries + 1
    if not isinstance(logits, Tensor) or logits.shape[1] != len(tokens):
        raise SinkscopeError(
            f"{type(model).__name__} gave logits for other tokens than the {len(tokens)} that it read; hand over a "
            "model that gives some for each, such as the one inside a wrapper."
        )
    losses = next_token_losses(logits, ids[:, tokens.to(ids.device)])
    if not bool(losses.isfinite().all()):
        raise not_finite(f"the logits at tokens {int(queries[0])} to {int(queries[-1])}", model)
    return Step(tokens, losses.cpu(), done)


def only_last(model: nn.Module, tokens: int = 1) -> dict[str, Any]:
    """What makes a model compute the logits of the last tokens only, where it can."""
    return {"logits_to_keep": tokens} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


ROWS = 256  # logits turned into float32 at once


def next_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target [..], float32, nats, from the logits [.., vocabulary] of the tokens before."""
    rows, ids = logits.flatten(0, -2).split(ROWS), targets.flatten().split(ROWS)
    losses = [F.cross_entropy(row.float(), each, reduction="none") for row, each in zip(rows, ids, strict=True)]
    return torch.cat(losses).unflatten(0, targets.shape)


def text_coordinates(texts: Sequence[Tensor]) -> dict[str, Any]:
    """Coordinates of a record of texts [token]: `sequence`, `token`, `length` and `token_id`, -1 past the end."""
    lengths = [len(text) for text in texts]
    ids = np.full((len(texts), max(lengths)), -1, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text.cpu().numpy()
    return {
        "sequence": np.arange(len(texts)),
        "token": np.arange(max(lengths)),
        "length": ("sequence", lengths),
        "token_id": (("sequence", "token"), ids),
    }
