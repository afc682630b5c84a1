"""An application that shows another text: one that was typed, or one that the model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.background import Deliver, Worker, sentence
from sinkscope.explorer.controller import NEEDS_MODEL, Controller
from sinkscope.explorer.display import alert
from sinkscope.explorer.state import look_as
from sinkscope.explorer.text_model import TextModel
from sinkscope.explorer.writing import Draft, Written, fitted, typed, written
from sinkscope.figures.style import visible
from sinkscope.tokens import TokenTexts

if TYPE_CHECKING:
    from sinkscope.explorer.app import Explorer


class Rewriting:
    """Reads and writes for an application.

    Attributes:
        is_busy: whether the model writes.
    """

    def __init__(self, app: Explorer, deliver: Deliver) -> None:
        self._app, self._deliver, self.is_busy = app, deliver, False
        self._worker = Worker(deliver)

    def read(self, text: str, length: int | None, is_chat: bool) -> None:
        """Show a text that was typed."""
        self.stop()
        self._show(typed(self._model().tokenizer, text, length, is_chat))

    def generate(self, prompt: Any, count: int) -> None:
        """Show what the model writes behind a text or messages, as it comes."""
        app, model, setting = self._app, self._model(), self._app.controller.configuration
        original, tokenizer = model.original, model.tokenizer
        app.controller.cancel()
        self.is_busy = True
        app.writing.show_busy(True)
        app.writing.status.value = "the model reads the prompt …"

        def job(is_overtaken: Callable[[], bool]) -> Iterator[Written]:
            yield from written(original, tokenizer, prompt, count, setting, is_overtaken)

        self._worker.submit(job, self._take, self._end)

    def stop(self) -> None:
        """Stop what the model writes; the text that was shown before stays."""
        self._worker.cancel()
        if self.is_busy:
            self._end(None)
            self._app.writing.status.value = "stopped: the text is as it was"

    def close(self) -> None:
        self._worker.cancel()
        self._worker.join(timeout=10)

    def _model(self) -> TextModel:
        self._app.controller.check_open()
        model = self._app.controller.model
        if model is None:
            raise SinkscopeError(f"{NEEDS_MODEL}.")
        if model.beside:
            raise SinkscopeError("the text stands beside an image; open the explorer anew with another one.")
        return model

    def _take(self, so_far: Written) -> None:
        app, tokens = self._app, TokenTexts(self._model().tokenizer)(so_far.ids)
        if so_far.spans is not None:
            ids = torch.tensor(so_far.ids)
            self._show(Draft(ids, so_far.spans, ids))
            app.writing.status.value = f"{so_far.new} tokens were written"
            return
        new = escape(visible("".join(tokens[-so_far.new :])))
        app.writing.status.value = f"{so_far.new} tokens written: <code>{new}</code>"
        if so_far.maps is not None:
            app.pictures.grow(so_far.maps, tokens, f"being written, {len(tokens)} tokens")

    def _end(self, problem: BaseException | None) -> None:
        app = self._app
        self.is_busy = False
        app.writing.show_busy(False)
        if problem is not None:
            app.writing.status.value = alert(sentence(problem))
        if app.controller.maps is not None and app.pictures.map.frame.get("length") != len(app.controller.tokens):
            app.pictures.draw_head()  # of the text that was shown before

    def _show(self, draft: Draft) -> None:
        """Show another text under the same setting, head and kind of map."""
        before, model = self._app.controller, self._model()
        reader = TextModel(model.original, draft.ids, model.tokenizer)
        controller = Controller(reader, TokenTexts(model.tokenizer)(draft.ids.tolist()), None, self._deliver)
        controller.parts.given = {} if draft.spans is None else {"chat": draft.spans}
        look_as(controller, before, fitted(before.configuration, len(draft.ids)))
        self._app._reopen(controller, draft.long_ids)
