"""A long text played through two policies at once: the player, and the tab that shows it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import count
from typing import Any

import ipywidgets as w
import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import Run, check_run, reader_of
from sinkscope.explorer.background import Deliver, Worker, sentence
from sinkscope.explorer.canvases import Race
from sinkscope.explorer.configuration import MOST_SINKS, POLICIES, Configuration
from sinkscope.explorer.display import alert
from sinkscope.explorer.text_model import TextModel, copy_sharing_weights
from sinkscope.policies import Policy
from sinkscope.scope.binding import limit_notes
from sinkscope.streaming.readers import Reader, WindowReader

BLOCK = 128  # tokens read at once, and drawn at once
SAMPLED = 16  # one of so many tokens is scored where each costs a whole window
WINDOW_TOKENS = 2048  # tokens of windows run together
RECENT = 256  # tokens in a running perplexity
SPEEDS = {"as fast as it goes": math.inf, "150 tokens/s": 150.0, "50 tokens/s": 50.0}
PLAYED = {POLICIES[name].label: name for name in ("window", "sinks", "dense")} | {
    f"re-computed (1 of {SAMPLED} tokens)": "recompute"
}


class Player:
    """Reads a text [token] block by block, each policy in turn, and goes on from where it stopped.

    Under re-computation, where every token costs a whole window, one token of `SAMPLED` is scored, and the last one.

    Raises:
        SinkscopeError: a text of fewer than two tokens, a policy that the model cannot carry out.
    """

    def __init__(self, model: nn.Module, ids: Tensor, policies: Sequence[Policy]) -> None:
        self.ids, self.policies = ids, list(policies)
        self.losses = np.full((len(self.policies), len(ids)), np.nan, dtype=np.float32)  # nats, NaN where not yet read
        self.done = [0] * len(self.policies)  # tokens read
        self._scored = [0] * len(self.policies)  # the last of them whose loss is known: a sample may be ahead of that
        self.seconds = [0.0] * len(self.policies)  # the model took for them
        self.notes: list[str] = []
        for policy in self.policies:
            self.notes += limit_notes(model, policy, len(ids))
        run, self._steps = Run(BLOCK, None, 0), []
        for policy in self.policies:  # begun once and kept while paused: the scopes they hold open are on copies
            copied = copy_sharing_weights(model).eval()
            check_run(copied, [ids], run)
            self._steps.append((self._sampled(copied, policy) or reader_of(copied, ids[None], policy, run)).steps())

    @property
    def is_over(self) -> bool:
        return min(self.done) >= len(self.ids) - 1

    @torch.no_grad()
    def play(
        self, is_stopped: Callable[[], bool], pace: Callable[[], float | None] = lambda: None
    ) -> Iterator[list[int]]:
        """Read on until the text ends or `is_stopped()`; gives `done` after each round of all policies.

        `pace()` gives the tokens per second and policy that it should not go beyond; None is as fast as it goes.
        """
        while not self.is_over and not is_stopped():
            began, before = time.perf_counter(), min(self.done)
            for place in range(len(self.policies)):
                self._read_on(place)
            yield list(self.done)
            tokens = min(self.done) - before
            while (limit := pace()) and time.perf_counter() - began < tokens / limit and not is_stopped():
                time.sleep(0.02)

    def close(self) -> None:
        for steps in self._steps:
            steps.close()  # type: ignore[attr-defined]

    def running(self, place: int, width: int = RECENT) -> tuple[np.ndarray, np.ndarray]:
        """Perplexity of a policy over the `width` tokens before each end of a block, with those ends: [block] each."""
        ends = np.arange(BLOCK, self.done[place] + BLOCK, BLOCK).clip(max=self.done[place])
        losses = self.losses[place]
        values = [np.exp(np.nanmean(losses[max(1, end + 1 - width) : end + 1])) for end in ends]
        return ends, np.asarray(values)

    def rate(self, place: int) -> float:
        """Tokens per second of one policy, while it has the machine."""
        return self.done[place] / self.seconds[place] if self.seconds[place] else 0.0

    def _sampled(self, model: nn.Module, policy: Policy) -> Reader | None:
        """Reads a sample of the text under re-computation; None under policies that keep a cache."""
        if not policy.coordinates["recomputed"] or policy.cache_size is None:
            return None
        last = len(self.ids) - 2  # the last token that predicts another
        queries = torch.tensor([*range(SAMPLED - 1, last, SAMPLED), last])
        return WindowReader(model, self.ids[None], policy, queries, max(1, WINDOW_TOKENS // policy.cache_size))

    def _read_on(self, place: int) -> None:
        """Read until a block is whole; families that go token by token take many steps for one."""
        goal = min(self.done[place] + BLOCK, len(self.ids) - 1)
        began = time.perf_counter()
        while self._scored[place] < goal and (step := next(self._steps[place], None)) is not None:
            self.losses[place, step.tokens.numpy()] = step.losses[0].numpy()
            self._scored[place] = int(step.tokens[-1])
        self.done[place] = goal
        self.seconds[place] += time.perf_counter() - began


class StreamingTab(w.VBox):
    """Play, pause, and the perplexity of both policies along a text [token], as it comes.

    `begin` is called before playing, so that nothing else uses the machine.
    """

    def __init__(self, model: TextModel, ids: Tensor, deliver: Deliver, begin: Callable[[], None]) -> None:
        self._original: nn.Module | None = model.original
        self._ids, self._begin = ids, begin
        self._worker = Worker(deliver)
        self.player: Player | None = None
        self.chart, self._requests = Race(), count(1)
        policies = list(PLAYED.items())
        self.left = w.Dropdown(options=policies, value="window", description="policy A")
        self.left.tooltip = "the first of two policies that read the text side by side: which earlier tokens are kept"
        self.right = w.Dropdown(options=policies, value="sinks", description="policy B")
        self.right.tooltip = "the second of them"
        self.cache = w.BoundedIntText(252, 2, len(ids), description="cache (tokens)")
        self.cache.tooltip = "how many tokens each policy keeps in all"
        self.sinks = w.BoundedIntText(4, 1, MOST_SINKS, description="sinks in the cache")
        self.sinks.tooltip = "how many of them are the first tokens of the text, where a policy keeps those"
        self.speed = w.Dropdown(options=list(SPEEDS.items()), value=math.inf, description="speed")
        self.speed.tooltip = "how fast the text is read at most"
        fields = [self.left, self.right, self.cache, self.sinks, self.speed]
        for widget in fields:
            widget.style.description_width = "initial"
            widget.layout.width = "185px" if isinstance(widget, w.BoundedIntText) else "250px"
        self.play = w.Button(description="play", tooltip="read on", button_style="primary", layout={"width": "80px"})
        self.again = w.Button(description="from the start", tooltip="begin again", layout={"width": "120px"})
        self.status = w.HTML(f"{len(ids):,} tokens to read, {BLOCK} at a time; both keep the same number of tokens.")
        self.play.on_click(lambda _: self.toggle())
        self.again.on_click(lambda _: self.restart())
        for widget in (self.left, self.right, self.cache, self.sinks):
            widget.observe(lambda _: self._forget(), "value")
        row = w.Box([*fields, self.play, self.again], layout={"flex_flow": "row wrap"})
        row.add_class("sinkscope-choosers")
        super().__init__([row, self.status, self.chart])
        self._draw()

    @property
    def is_playing(self) -> bool:
        return self.play.description == "pause"

    def toggle(self) -> None:
        if self.is_playing:
            self.pause()
            return
        self._begin()
        self.play.description = "pause"

        def job(is_overtaken: Callable[[], bool]) -> Iterator[Any]:
            if self.player is None:
                assert self._original is not None
                self.player = Player(self._original, self._ids, self._policies())
            yield from self.player.play(is_overtaken, lambda: self.speed.value)

        self._worker.submit(job, lambda _: self._draw(), self._ended)

    def pause(self) -> None:
        """Stop where it is, after the block under way."""
        if self.is_playing:
            self._stop()
            self._draw()

    def restart(self) -> None:
        self._forget()
        self.toggle()

    def close(self) -> None:
        self._forget()
        self._original = None
        super().close()

    def _policies(self) -> list[Policy]:
        cache, sinks = self.cache.value, self.sinks.value
        made = []
        for name in (self.left.value, self.right.value):
            beside = sinks if name == "sinks" else 0
            made.append(Configuration(policy=name, sinks=beside, window=cache - beside).policy_slot)
        if made[0] == made[1]:
            raise SinkscopeError("both policies are the same; choose two to compare.")
        return made

    def _stop(self) -> None:
        self._worker.cancel()
        self._worker.join(timeout=10)
        self.play.description = "play"

    def _forget(self) -> None:
        self._stop()
        self.sinks.disabled = "sinks" not in (self.left.value, self.right.value)
        if self.player is not None:
            self.player.close()
            self.player = None

    def _ended(self, problem: BaseException | None) -> None:
        self.play.description = "play"
        if problem is not None:
            self._forget()  # what failed cannot be gone on with
            self.status.value = alert(sentence(problem))

    def _draw(self) -> None:
        curves: list[dict[str, Any]] = []
        marks: set[int] = set()
        if (player := self.player) is not None:
            lines = []
            for place, policy in enumerate(player.policies):
                ends, values = player.running(place)
                known = np.isfinite(values)
                curves.append({"name": policy.name, "x": ends[known].tolist(), "y": values[known].tolist()})
                marks |= set() if policy.cache_size is None else {policy.cache_size}
                now = f", perplexity {values[-1]:.2f}" if len(values) else ""
                rate = f"{player.rate(place):.0f} tokens/s"
                lines.append(f"<b>{escape(policy.name)}</b>: {player.done[place]:,} tokens{now}, {rate}")
            self.status.value = " · ".join(lines) + (" · the text has ended" if player.is_over else "")
        seen = {"length": len(self._ids), "recent": RECENT, "request": next(self._requests)}
        self.chart.frame = {"curves": curves, "marks": sorted(marks), **seen}
