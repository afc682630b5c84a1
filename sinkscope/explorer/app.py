"""The application: widgets around a controller, which ask it and show what it says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import IPython.display
import ipywidgets as w
import xarray as xr
from torch import Tensor

from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.background import Interrupts, Mailbox
from sinkscope.explorer.canvases import Explained, HeadMap, Message
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.controller import NEEDS_MODEL, Controller, sentence
from sinkscope.explorer.controls import CompareBar, Controls, MapControls, descendants, explained
from sinkscope.explorer.display import Pictures, alert, continuations, headline, next_tokens, prices
from sinkscope.explorer.guide import Guide
from sinkscope.explorer.page import MEGABYTES, page_of
from sinkscope.explorer.pixels import saved_overview
from sinkscope.explorer.results import Change, HeadMaps
from sinkscope.explorer.saving import ENDED, NEEDS_KERNEL, SaveBar, save_view, static_picture, view_record
from sinkscope.explorer.streaming import StreamingTab
from sinkscope.explorer.tables import copied, save_table
from sinkscope.explorer.text_model import TextModel
from sinkscope.policies import Policy

QUIET = 1.5  # seconds without a change after which the still picture follows, so that it is never in a user's way


class Explorer(w.VBox):
    """What `sinkscope.explore` shows; its `controller` does all of it without widgets.

    Args:
        model, tokens, saved: as those of a `Controller`.
        long_ids: [token] of the text that the streaming tab plays; given with a model.
        code_text: an expression for the token ids in saved code.
        note: what has to be said about the text.
        state: what to look at first, as `state` of another explorer on the same text and model had it.
    """

    def __init__(
        self,
        model: TextModel | None,
        tokens: list[str],
        saved: HeadMaps | None = None,
        long_ids: Tensor | None = None,
        code_text: str | None = None,
        note: str = "",
        state: str | None = None,
    ) -> None:
        self.streaming: StreamingTab | None = None
        self._mailbox = Mailbox()
        self._code_text, self._picture, self._page = code_text, None, ""
        self._drawing: asyncio.TimerHandle | None = None  # of the still picture, when the changes have stopped
        self._shown_in: int | None = None  # number of the cell that displayed it last
        self._interrupts = Interrupts(self._interrupted)
        self.controller = Controller(model, tokens, saved, self._mailbox.deliver)
        if state is not None:
            self.controller.adopt(state)  # which refuses what is of another text or model before there is any widget
        self.controller.listen = self._changed
        self.controls, self.map_controls = Controls(self.controller), MapControls(self.controller)
        self.compare = CompareBar(self.controller)
        self.pictures = Pictures(self.controller)
        self.guide = Guide()
        self.headline, self.busy = w.HTML(), w.HTML()
        self._note = f"<i>{escape(note)}</i>" if note else ""
        self.problem = w.HTML(self._note)
        self.next_tokens, self.continuation, self.price = w.HTML(), w.HTML(), w.HTML()
        self.saving = SaveBar(self.save_to, self.save_csv)
        if model is not None and long_ids is not None:
            self.streaming = StreamingTab(model, long_ids, self._mailbox.deliver, self.controller.cancel)
        super().__init__(self._laid_out())
        self.add_class("sinkscope-app")
        self._wire()
        if saved is not None:
            self.controller.now.overview = saved_overview(saved)
            self.controller.open_on(self.controller.now.overview.scores.get("mass"))
            self._draw_reading()
            self._note = self._note or "<i>A saved record was opened without its model, so policies are at rest.</i>"
            self._say("")
        self.controller.begin()

    # --- life -----------------------------------------------------------------------------------------------------

    @checks_types
    def wait(self, timeout: float | None = 60) -> bool:
        """Wait until nothing is under way, and show what came; False after `timeout` seconds."""
        return self._mailbox.pump(lambda: not self.controller.busy, timeout)

    @property
    def record(self) -> xr.Dataset:
        """What is shown, as a record: `sinkscope.figures.explored` draws it, `sinkscope.explore` opens it again."""
        return view_record(self.controller)

    @checks_types
    def save_to(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the view into a folder: the figure, the record, and the lines of code that make them again.

        Raises:
            SinkscopeError: nothing was read yet, or the folder cannot be written.
        """
        return save_view(self.controller, folder, self._code_text)

    @checks_types
    def save_page(
        self,
        path: str | os.PathLike[str],
        settings: Sequence[Mapping[str, Any] | Configuration | Policy] | None = None,
        *,
        megabytes: float = MEGABYTES,
    ) -> Path:
        """Write one HTML file that shows this text without a kernel, as `page_of` says."""
        return page_of(self.controller, path, settings, megabytes)

    @checks_types
    def save_csv(self, path: str | os.PathLike[str], what: str = "row") -> Path:
        """Write what is shown as a table: the chosen query's "row", the part of the "map", or all "heads".

        Text that a spreadsheet would run is made plain text.

        Raises:
            SinkscopeError: nothing is shown that the table could hold, or the file cannot be written, or is another.
        """
        return save_table(self.controller, path, what)

    @property
    def state(self) -> str:
        """What is looked at, as a short text; `explore(..., state=text)` opens on it, and so does setting it."""
        return self.controller.state

    @state.setter
    def state(self, text: str) -> None:
        self.controller.restore(text)

    def close(self) -> None:
        """Stop, and leave nothing behind: no thread, no hook, no model; where it was shown a sentence says so."""
        self._interrupts.stop()
        if self._drawing is not None:
            self._drawing.cancel()
        if self._picture is not None and not self.controller.is_closed:
            self._picture.update(IPython.display.HTML(f"<p>{escape(ENDED)}</p>{self._page}"))
        self.controller.close()
        if self.streaming is not None:
            self.streaming.close()
        partner = self.pictures.partner  # stands nowhere while nothing is compared
        for widget in [*descendants(self), *descendants(partner), partner]:
            widget.close()
        super().close()

    def show(self) -> Explorer:
        """Display the application, and below it a still picture for readers without a kernel."""
        self._ipython_display_()
        self._picture = IPython.display.display(IPython.display.HTML(""), display_id=True)
        return self

    def _ipython_display_(self) -> None:
        """Display the application, unless the cell that runs has done so and now ends with it."""
        cell = getattr(IPython.get_ipython(), "execution_count", None)
        if cell is None or cell != self._shown_in:
            self._shown_in = cell
            IPython.display.display(self._repr_mimebundle_(), raw=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/plain": "sinkscope explorer", "text/html": f"<p>{escape(NEEDS_KERNEL)}</p>"}

    def _interrupted(self) -> None:
        self.controller.cancel()
        self._say("interrupted: what is shown is as it was")

    # --- building -------------------------------------------------------------------------------------------------

    def _laid_out(self) -> list[w.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}
        for words in (self.next_tokens, self.continuation):
            words.layout.flex, words.layout.min_width = "1 1 300px", "0"
        predictions = w.Box([self.next_tokens, self.continuation], layout=wrap)
        buttons = [self.busy, self.controls.reset, self.controls.stop]
        beside = {"justify_content": "space-between", "align_items": "center", "flex_flow": "row wrap"}
        top = w.HBox([self.headline, w.HBox(buttons, layout={"align_items": "center"})], layout=beside)
        asked = [top, self.controls, self.map_controls, self.compare]
        heads = w.VBox([*asked, self.pictures, predictions, self.price, self.saving])
        tabs = w.Tab([heads], titles=["heads"])
        if streaming := self.streaming:
            tabs.children, tabs.titles = [heads, streaming], ["heads", "streaming"]
            tabs.observe(lambda at: None if at["new"] else streaming.pause(), "selected_index")
        parts = [self.problem, self.guide.button, self.guide.panel, tabs]
        return [Explained(words=explained(parts)), *parts]

    def _wire(self) -> None:
        controller, pictures = self.controller, self.pictures
        pictures.atlas.observe(lambda change: controller.choose(change["new"]), "selected")
        pictures.map.observe(lambda change: controller.choose_query(change["new"]), "query")
        pictures.map.observe(lambda change: controller.show(region=tuple(change["new"]) or None), "view")
        pictures.map.on_msg(self._hovered)
        tables = {pictures.atlas: "heads", pictures.map: "map", pictures.partner: "map", pictures.text: "row"}
        for canvas in tables:
            canvas.on_msg(lambda canvas, content, _: self._copied(canvas, content, tables[canvas]))
        pictures.partner.observe(lambda change: controller.choose_query(change["new"]), "query")
        pictures.partner.observe(lambda change: controller.show(region=tuple(change["new"]) or None), "view")
        pictures.partner.on_msg(self._hovered)
        pictures.text.observe(lambda change: controller.choose_query(change["new"]), "query")
        pictures.losses.observe(lambda change: controller.choose_query(change["new"]), "query")
        pictures.text.observe(self._tokens_evicted, "evicted")
        self.map_controls.ranking.observe(self._ranked, "value")
        self.saving.button.on_click(lambda _: self._draw_picture())
        if controller.model is None:
            pictures.text.can_evict, pictures.text.why_not = False, NEEDS_MODEL
        self.saving.button.disabled = controller.maps is None

    # --- what the widgets ask ---------------------------------------------------------------------------------------

    def _tokens_evicted(self, change: dict[str, Any]) -> None:
        evicted = tuple(sorted(change["new"]))
        if evicted != self.controller.configuration.chosen_tokens:
            self.controller.change(policy="chosen", evicted=evicted)

    def _ranked(self, change: dict[str, Any]) -> None:
        self.pictures.ranking = change["new"]
        self.pictures.draw_order()

    def _hovered(self, canvas: HeadMap | None, content: dict[str, Any], _: Any) -> None:
        if content.get("kind") == Message.HOVER:
            cell, controller = (int(content["query"]), int(content["key"])), self.controller
            numbers, beside = controller.numbers(*cell), None
            if controller.comparison.is_difference or controller.comparison.is_beside:
                beside = controller.comparison.numbers(*cell)
            (canvas or self.pictures.map).answer(content, *numbers, beside)

    def _copied(self, canvas: w.Widget, content: dict[str, Any], what: str) -> None:
        if content.get("kind") == Message.COPY:
            try:
                told = copied(self.controller, what)
            except SinkscopeError as problem:
                told = {"problem": str(problem)}
            canvas.send({"kind": Message.COPY, **told})

    # --- what the controller says -------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        try:
            self._draw[change](self)
        except Exception as error:  # a picture that fails must not take the rest with it
            self._say(sentence(error))

    def _draw_busy(self) -> None:
        busy = self.controller.busy
        live = f"<span role='status' aria-live='polite'>working: {escape(busy)} …</span>"
        self.busy.value = live if busy else "<span role='status'>ready</span>"
        if busy:
            self._interrupts.start()
            self._say("")
            if self.streaming:
                self.streaming.pause()
        else:
            self._interrupts.stop()
        self.controls.show()
        self.pictures.dim()

    def _draw_configuration(self) -> None:
        self.controls.show()
        self.compare.show()
        self.pictures.text.evicted = list(self.controller.configuration.chosen_tokens)

    def _draw_reading(self) -> None:
        self.pictures.draw_head()
        self._draw_words()
        self.pictures.dim()
        self.saving.button.disabled = False
        self._draw_overview()
        self.pictures.draw_losses()
        self.compare.show()
        self._draw_picture_later()

    def _draw_overview(self) -> None:
        if self.controller.now.overview is not None:
            self.pictures.draw_overview(self.controller.now.overview.units)
            self.pictures.dim()

    def _draw_unit(self) -> None:
        self.pictures.draw_head()
        self._draw_picture_later()

    def _draw_query(self) -> None:
        self.pictures.draw_query()
        self._draw_words()

    def _draw_map_options(self) -> None:
        self.map_controls.show()
        self.compare.show()
        self.pictures.draw_head()

    def _draw_partner(self) -> None:
        self.compare.show()
        self.pictures.draw_partner()
        self.pictures.draw_losses()
        self._draw_words()

    def _draw_problem(self) -> None:
        self._say(self.controller.problem)
        self.pictures.dim()

    def _draw_continuation(self) -> None:
        self.continuation.value = continuations(self.controller)

    def _draw_price(self) -> None:
        self.price.value = prices(self.controller)

    def _say(self, problem: str) -> None:
        self.problem.value = alert(problem) if problem else self._note

    def _draw_words(self) -> None:
        self.headline.value = headline(self.controller)
        self._draw_price()
        if self.controller.model is not None:
            self.next_tokens.value = next_tokens(self.controller)
            self.continuation.value = continuations(self.controller)

    def _draw_picture_later(self) -> None:
        """Draw the still picture once nothing changes any more."""
        if self._drawing is not None:
            self._drawing.cancel()
        if self._picture is not None:
            self._drawing = self._mailbox.later(QUIET, self._draw_picture_at_rest)

    def _draw_picture_at_rest(self) -> None:
        if self.controller.busy:
            self._draw_picture_later()
        else:
            self._draw_picture()

    def _draw_picture(self) -> None:
        if self._picture is not None:
            self._page = static_picture(self.controller)
            self._picture.update(IPython.display.HTML(self._page))

    _draw: ClassVar[dict[Change, Callable[[Explorer], None]]] = {
        Change.BUSY: _draw_busy, Change.CONFIGURATION: _draw_configuration, Change.READING: _draw_reading,
        Change.OVERVIEW: _draw_overview, Change.PRICE: _draw_price, Change.CONTINUATION: _draw_continuation,
        Change.MAP_OPTIONS: _draw_map_options, Change.UNIT: _draw_unit,
        Change.QUERY: _draw_query, Change.PROBLEM: _draw_problem, Change.PARTNER: _draw_partner,
    }  # fmt: skip
