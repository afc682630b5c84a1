"""A tab that plays a long text through two policies at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go
from torch import Tensor, nn

from sinkscope.core.policies import Policy
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.controller import sentence
from sinkscope.explorer.losses import CHANGED, DENSE, GREY
from sinkscope.explorer.player import BLOCK, Player
from sinkscope.explorer.setting import KINDS, MOST_SINKS, Setting
from sinkscope.explorer.text_model import TextModel
from sinkscope.explorer.worker import Worker

SPEEDS = {"as fast as it goes": None, "150 tokens/s": 150.0, "50 tokens/s": 50.0}
SIDES = {kind: KINDS[kind] for kind in ("window", "sinks", "dense")}


class StreamingTab(w.VBox):
    """Play, pause, and the perplexity of both policies along the text, as it comes.

    Args:
        model: reads the text.
        ids: [token] of the long text.
        deliver: as for `Worker`.
        begin: called before playing, so that nothing else uses the machine.
    """

    def __init__(
        self, model: TextModel, ids: Tensor, deliver: Callable[[Callable[[], None]], None], begin: Callable[[], None]
    ) -> None:
        self._original: nn.Module | None = model.original
        self._ids, self._begin = ids, begin
        self._worker = Worker(deliver)
        self.player: Player | None = None
        self.chart: go.FigureWidget | None = None
        style, layout = {"description_width": "initial"}, {"width": "230px"}
        sides = [(label, kind) for kind, label in SIDES.items()]
        self.left = w.Dropdown(options=sides, value="window", description="one", style=style, layout=layout)
        self.right = w.Dropdown(options=sides, value="sinks", description="other", style=style, layout=layout)
        self.cache = w.BoundedIntText(
            252, 2, len(ids), description="cache (tokens)", style=style, layout={"width": "170px"}
        )
        self.sinks = w.BoundedIntText(4, 1, MOST_SINKS, description="sinks", style=style, layout={"width": "110px"})
        self.speed = w.Dropdown(options=list(SPEEDS.items()), description="speed", style=style, layout=layout)
        self.play = w.Button(description="play", tooltip="read on", button_style="primary", layout={"width": "80px"})
        self.again = w.Button(description="from the start", tooltip="begin again", layout={"width": "120px"})
        self.status = w.HTML(f"{len(ids):,} tokens to read, {BLOCK} at a time; both keep as many tokens.")
        self.place = w.Box([], layout={"width": "100%"})
        self.play.on_click(lambda _: self.toggle())
        self.again.on_click(lambda _: self.restart())
        for widget in (self.left, self.right, self.cache, self.sinks):
            widget.observe(lambda _: self._forget(), "value")
        row = w.Box(
            [self.left, self.right, self.cache, self.sinks, self.speed, self.play, self.again],
            layout={"flex_flow": "row wrap"},
        )
        super().__init__([row, self.status, self.place])

    @property
    def is_playing(self) -> bool:
        """Whether a text is being read."""
        return self.play.description == "pause"

    def toggle(self) -> None:
        """Play, or pause."""
        if self.is_playing:
            self.pause()
            return
        self.make_chart()
        self._begin()
        self.play.description = "pause"

        def job(is_overtaken: Callable[[], bool]) -> Iterator[Any]:
            if self.player is None:
                assert self._original is not None
                self.player = Player(self._original, self._ids, self._policies())
            yield from self.player.play(is_overtaken, lambda: SPEEDS.get(self.speed.label))

        self._worker.submit(job, lambda _: self._draw(), self._ended)

    def pause(self) -> None:
        """Stop where it is, after the block under way."""
        self._worker.cancel()
        self._worker.join(timeout=10)
        self.play.description = "play"
        if self.player is not None:
            self._draw()

    def restart(self) -> None:
        """Back to the start of the text."""
        self._forget()
        self.toggle()

    def make_chart(self) -> None:
        """Make the chart, once; it takes the browser a moment to load."""
        if self.chart is None:
            self.chart = _chart()
            self.place.children = [self.chart]

    def close(self) -> None:
        """Stop, and let go of everything."""
        self._forget()
        self._original = None
        super().close()

    def _policies(self) -> list[Policy]:
        cache, sinks = self.cache.value, self.sinks.value
        made = []
        for kind in (self.left.value, self.right.value):
            beside = sinks if kind == "sinks" else 0
            made.append(Setting(kind=kind, sinks=beside, window=cache - beside).policy)
        if made[0] == made[1]:
            raise SinkscopeError("both policies are the same; choose two to compare.")
        return made

    def _forget(self) -> None:
        self._worker.cancel()
        self._worker.join(timeout=10)
        self.play.description = "play"
        if self.player is not None:
            self.player.close()
            self.player = None

    def _ended(self, problem: BaseException | None) -> None:
        self.play.description = "play"
        if problem is not None:
            self._forget()  # what failed cannot be gone on with
            self._say(sentence(problem))

    def _say(self, problem: str) -> None:
        self.status.value = f"<b role='alert'>{escape(problem)}</b>"

    def _draw(self) -> None:
        player, chart = self.player, self.chart
        if player is None or chart is None:
            return
        said = []
        with chart.batch_update():
            for place, policy in enumerate(player.policies):
                ends, values = player.running(place)
                chart.data[place].x, chart.data[place].y = ends.tolist(), values.tolist()
                chart.data[place].name = policy.name
                now = f", perplexity {values[-1]:.2f}" if len(values) else ""
                rate = f"{player.rate(place):.0f} tokens/s"
                said.append(f"<b>{escape(policy.name)}</b>: {player.done[place]:,} tokens{now}, {rate}")
            sizes = {policy.cache_size for policy in player.policies if policy.cache_size is not None}
            chart.layout.shapes = [
                {
                    "type": "line",
                    "x0": size,
                    "x1": size,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": GREY, "dash": "dot", "width": 1},
                }
                for size in sizes
            ]
        over = " · the text has ended" if player.is_over else ""
        self.status.value = " · ".join(said) + over


def _chart() -> go.FigureWidget:
    figure = go.FigureWidget()
    for colour, dash in ((CHANGED, "dash"), (DENSE, "solid")):
        figure.add_scatter(x=[], y=[], mode="lines", line={"color": colour, "width": 2, "dash": dash})
    figure.update_layout(
        width=840,
        height=300,
        margin={"l": 60, "r": 10, "t": 26, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 11, "color": GREY},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=True,
    )
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    figure.update_xaxes(title="tokens read; dotted: the cache is full", **axis)
    figure.update_yaxes(title="perplexity, last 256 tokens", type="log", **axis)
    return figure
