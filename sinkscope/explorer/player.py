"""A long text read under two policies at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.policies import Policy
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.twin import twin_of
from sinkscope.streaming.limits import block_within_limits, limit_notes
from sinkscope.streaming.perplexity import Run, check_run
from sinkscope.streaming.readers import BlockReader, Reader, TokenReader

BLOCK = 128  # tokens read at once, and drawn at once


class Player:
    """Reads block by block, each policy in turn, and goes on from where it stopped.

    Args:
        model: a decoder with a language head; twins of it are run.
        ids: [token].
        policies: which keys a query may see; none that is recomputed.

    Attributes:
        losses: [policy, token] nats, NaN where not yet read.
        done: [policy] tokens read.
        seconds: [policy] the model took for them.

    Raises:
        SinkscopeError: a text of fewer than two tokens, a policy that is recomputed or that the model cannot carry out.
    """

    def __init__(self, model: nn.Module, ids: Tensor, policies: Sequence[Policy]) -> None:
        self.ids, self.policies = ids, list(policies)
        self.losses = np.full((len(self.policies), len(ids)), np.nan, dtype=np.float32)
        self.done, self.seconds = [0] * len(self.policies), [0.0] * len(self.policies)
        self.notes = []
        for policy in self.policies:
            if policy.recomputed:
                raise SinkscopeError(f"`{policy.name}` keeps nothing to play on from; give policies that keep a cache.")
            self.notes += limit_notes(model, policy, len(ids))
        # begun once and kept while paused: the scopes they hold open are on twins that nobody else has
        self._steps = [self._reader(twin_of(model).eval(), policy).steps() for policy in self.policies]

    @property
    def is_over(self) -> bool:
        """Whether the text has ended."""
        return min(self.done) >= len(self.ids) - 1

    @torch.no_grad()
    def play(
        self, is_stopped: Callable[[], bool], pace: Callable[[], float | None] = lambda: None
    ) -> Iterator[list[int]]:
        """Read on until the text ends or `is_stopped()`; gives `done` after each round of all policies.

        Args:
            pace: tokens per second and policy that it should not go beyond; None for as fast as it goes.
        """
        while not self.is_over and not is_stopped():
            began, before = time.perf_counter(), min(self.done)
            for place in range(len(self.policies)):
                self._read_on(place)
            yield list(self.done)
            self._rest(began, min(self.done) - before, pace, is_stopped)

    def close(self) -> None:
        """Let go of what was read."""
        for steps in self._steps:
            steps.close()  # type: ignore[attr-defined]

    def running(self, place: int, width: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """Perplexity of a policy over the `width` tokens before each end of a block, with those ends: [block] each."""
        ends = np.arange(BLOCK, self.done[place] + BLOCK, BLOCK).clip(max=self.done[place])
        losses = self.losses[place]
        values = [np.exp(np.nanmean(losses[max(1, end + 1 - width) : end + 1])) for end in ends]
        return ends, np.asarray(values)

    def rate(self, place: int) -> float:
        """Tokens per second of one policy, while it has the machine."""
        return self.done[place] / self.seconds[place] if self.seconds[place] else 0.0

    def _reader(self, twin: nn.Module, policy: Policy) -> Reader:
        rows = self.ids[None]
        check_run(twin, [self.ids], Run(BLOCK, None, 0))
        if policy.window is not None and not find_anatomy(twin).interface:
            return TokenReader(twin, rows, policy)
        return BlockReader(twin, rows, policy, block_within_limits(twin, policy, BLOCK))

    def _read_on(self, place: int) -> None:
        """Read until a block is whole; families that go token by token take many steps for one."""
        goal = min(self.done[place] + BLOCK, len(self.ids) - 1)
        began = time.perf_counter()
        while self.done[place] < goal:
            step = next(self._steps[place])
            self.losses[place, step.tokens.numpy()] = step.losses[0].numpy()
            self.done[place] = step.done
        self.seconds[place] += time.perf_counter() - began

    def _rest(
        self, began: float, tokens: int, pace: Callable[[], float | None], is_stopped: Callable[[], bool]
    ) -> None:
        while (limit := pace()) and time.perf_counter() - began < tokens / limit and not is_stopped():
            time.sleep(0.02)
