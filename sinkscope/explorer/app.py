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

from sinkscope.arguments import checks_types, whole_number
from sinkscope.explorer.background import Interrupts, Mailbox, sentence
from sinkscope.explorer.canvases import Explained, Finder, Lines
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.controls import CompareBar, Controls, MapControls, descendants, explained
from sinkscope.explorer.display import Pictures, alert, continuations, headline, next_tokens, prices
from sinkscope.explorer.guide import Guide
from sinkscope.explorer.lines import draw_lines
from sinkscope.explorer.overview import saved_overview
from sinkscope.explorer.page import MEGABYTES, page_of
from sinkscope.explorer.results import Change, HeadMaps
from sinkscope.explorer.rewriting import Rewriting
from sinkscope.explorer.saving import ENDED, NEEDS_KERNEL, SaveBar, save_view, static_picture, view_record
from sinkscope.explorer.streaming import StreamingTab
from sinkscope.explorer.tables import save_table
from sinkscope.explorer.text_model import TextModel
from sinkscope.explorer.wiring import wire
from sinkscope.explorer.writing import WritingBar
from sinkscope.policies import Policy
from sinkscope.spans import Spans

QUIET = 1.5  # seconds without a change after which the still picture follows, so that it is never in a user's way


class Explorer(w.VBox):
    """What `sinkscope.explore` shows; its `controller` does all of it without widgets.

    Args:
        model, tokens, saved: as those of a `Controller`.
        long_ids: [token] of the text that the streaming tab plays; given with a model.
        code_text: an expression for the token ids in saved code.
        note: what has to be said about the text.
        state: what to look at first, as `state` of another explorer on the same text and model had it.
        spans: of the text, as `Parts` is given them.
        offered: policies and normalisers of one's own, as a `Controller` has them.
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
        spans: Mapping[str, Spans] | None = None,
        offered: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.add_class("sinkscope-app")
        self._picture, self._page = None, ""
        self._drawing: asyncio.TimerHandle | None = None  # of the still picture, when the changes have stopped
        self._shown_in: int | None = None  # number of the cell that displayed it last
        self._interrupts = Interrupts(self._interrupted)
        self._mailbox = Mailbox()
        self.rewriting = Rewriting(self, self._mailbox.deliver)
        controller = Controller(model, tokens, saved, self._mailbox.deliver)
        controller.parts.given, controller.offered = dict(spans or {}), dict(offered or {})
        if state is not None:
            controller.adopt(state)  # which refuses what is of another text or model before there is any widget
        self._open(controller, long_ids, code_text, note)

    def _open(self, controller: Controller, long_ids: Tensor | None, code_text: str | None, note: str) -> None:
        """Make the widgets of a controller, and have it begin."""
        model, saved = controller.model, controller.saved
        self._code_text, self.controller = code_text, controller
        controller.listen = self._changed
        self.controls, self.map_controls = Controls(controller), MapControls(controller)
        self.compare, self.pictures = CompareBar(controller), Pictures(controller)
        self.finder = Finder(tokens=controller.tokens, query=controller.query)
        self.guide = Guide()
        self.headline, self.busy = w.HTML(), w.HTML()
        self._note = f"<i>{escape(note)}</i>" if note else ""
        self.problem = w.HTML(self._note)
        self.next_tokens, self.continuation, self.price = w.HTML(), w.HTML(), w.HTML()
        self.spans = w.HTML(layout={"overflow": "auto"})
        self.lines = Lines()
        self.saving, self.writing = SaveBar(self.save_to, self.save_csv), WritingBar(model)
        self.streaming: StreamingTab | None = None
        if model is not None and long_ids is not None:
            self.streaming = StreamingTab(model, long_ids, self._mailbox.deliver, controller.cancel)
        self.children = self._laid_out()
        wire(self)
        self.saving.button.on_click(lambda _: self._draw_picture())
        if saved is not None:
            controller.now.overview = saved_overview(saved)
            controller.open_on(controller.now.overview.scores.get("mass"))
            self._draw_reading()
            self._note = self._note or "<i>A saved record was opened without its model, so policies are at rest.</i>"
            self._say("")
        controller.begin()

    # --- life -----------------------------------------------------------------------------------------------------

    @checks_types
    def wait(self, timeout: float | None = 60) -> bool:
        """Wait until nothing is under way, and show what came; False after `timeout` seconds."""
        return self._mailbox.pump(lambda: not self.controller.busy and not self.rewriting.is_busy, timeout)

    @checks_types
    def read(self, text: str, length: int | None = None, *, chat: bool = False) -> None:
        """Show another text under the same setting.

        Args:
            text: the text itself; or a chat, in which "user:" or another role at the start of a line begins a message.
            length: tokens of it that are shown at most; up to 2,048 when None.
            chat: whether it is a chat.

        Raises:
            SinkscopeError: no tokenizer, an empty text or chat, one of a single token, a length that no map has, a chat
                template that lacks the roles; what is shown stays.
        """
        self.rewriting.read(text, length, chat)

    @checks_types
    def generate(self, prompt: Any, max_new_tokens: int = 32) -> None:
        """Have the model write behind a prompt under the setting asked for, and show both; `wait` waits for it.

        Args:
            prompt: a text, or messages.
            max_new_tokens: how many tokens at most.

        Raises:
            SinkscopeError: there is no model, or another count. What else goes wrong is a sentence beside the buttons.
        """
        self.rewriting.generate(prompt, whole_number(max_new_tokens, "max_new_tokens", 1))

    def _reopen(self, controller: Controller, long_ids: Tensor) -> None:
        """Show what another controller looks at, in the place of what is shown."""
        typed, old = self.writing, self._parts()
        self._let_go()
        more = f"The text is longer than is shown: these are its first {len(controller.tokens):,} tokens."
        self._open(controller, long_ids, None, more if len(long_ids) > len(controller.tokens) else "")
        for new, known in zip(self.writing.fields, typed.fields, strict=True):
            new.value = known.value
        for widget in old:
            widget.close()

    def _parts(self) -> list[w.Widget]:
        """All widgets inside the application; the partner's map stands nowhere while nothing is compared."""
        inside = [*self.children, self.pictures.partner]
        return [*inside, *(each for widget in inside for each in descendants(widget))]

    def _let_go(self) -> None:
        """Stop all that is under way, and let go of the model and of what was read."""
        if self._drawing is not None:
            self._drawing.cancel()
        self.controller.close()
        if self.streaming is not None:
            self.streaming.close()

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
        self.rewriting.close()
        if self._picture is not None and not self.controller.is_closed:
            self._picture.update(IPython.display.HTML(f"<p>{escape(ENDED)}</p>{self._page}"))
        self._let_go()
        self._mailbox.close()
        for widget in [*self._parts(), *descendants(self)]:
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
        self.rewriting.stop()
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
        looks = [top, self.controls, self.map_controls, self.compare, self.pictures, self.finder, self.spans]
        heads = w.VBox([*looks, predictions, self.price, self.writing, self.saving])
        shown: dict[str, w.Widget] = {"heads": heads}
        if self.streaming is not None:
            shown["streaming"] = self.streaming
        shown["lines"] = self.lines
        tabs = self.tabs = w.Tab(list(shown.values()), titles=list(shown))
        tabs.observe(lambda at: self._turned_to(tabs.titles[at["new"]]), "selected_index")
        parts = [self.problem, self.guide.button, self.guide.panel, tabs]
        return [Explained(words=explained(parts)), *parts]

    def _turned_to(self, tab: str) -> None:
        self._draw_lines()
        if self.streaming is not None and tab != "streaming":
            self.streaming.pause()

    def _draw_lines(self) -> None:
        """Draw the lines between tokens, where somebody looks at them."""
        if self.tabs.titles[self.tabs.selected_index or 0] == "lines":
            draw_lines(self.lines, self.controller)

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
        self.finder.places = [[unit.layer, unit.head] for unit in self.controller.units]
        self.finder.selected = self.controller.unit
        self.pictures.draw_head()
        self.spans.value = self.controller.parts.html()
        self._draw_lines()
        self.saving.button.disabled = False
        self._draw_overview()
        self._draw_scores()

    def _draw_scores(self) -> None:
        self._draw_words()
        self.pictures.dim()
        self.pictures.draw_losses()
        self.compare.show()
        self._draw_picture_later()

    def _draw_overview(self) -> None:
        if self.controller.now.overview is not None:
            self.pictures.draw_overview(self.controller.now.overview.units)
            self.pictures.dim()

    def _draw_unit(self) -> None:
        self._draw_lines()
        self.spans.value = self.controller.parts.html()
        self.finder.selected = self.controller.unit
        self.pictures.draw_head()
        self._draw_picture_later()

    def _draw_query(self) -> None:
        self.finder.query = self.controller.query
        self._draw_lines()
        self.pictures.draw_query()
        self._draw_words()

    def _draw_map_options(self) -> None:
        self.spans.value = self.controller.parts.html()
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
        self.map_controls.show()  # what cannot be is not left standing there
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
        Change.SCORES: _draw_scores, Change.OVERVIEW: _draw_overview, Change.PRICE: _draw_price,
        Change.CONTINUATION: _draw_continuation, Change.MAP_OPTIONS: _draw_map_options, Change.UNIT: _draw_unit,
        Change.QUERY: _draw_query, Change.PROBLEM: _draw_problem, Change.PARTNER: _draw_partner,
        Change.AHEAD: lambda app: app.pictures.draw_head(),
    }  # fmt: skip
