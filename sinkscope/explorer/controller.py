"""The explorer without its widgets: what is asked for, what is shown, and which of them belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.comparison import Loss, guesses_at, loss_of
from sinkscope.explorer.head_maps import HeadMaps, Unit
from sinkscope.explorer.overview import RANKINGS
from sinkscope.explorer.readings import Continuation, Overview, Price, Reading
from sinkscope.explorer.setting import Setting
from sinkscope.explorer.text_model import TextModel
from sinkscope.explorer.view import Tile, View, numbers_at, row_of, tile_of
from sinkscope.explorer.worker import Worker

NEEDS_MODEL = "this needs the model; a saved record was opened without one"
SHARPEST_FIRST = ("entropy", "value")  # rankings in which small comes first


@dataclass
class Shown:
    """All there is of one setting so far.

    Attributes:
        reading, overview, price, continuation: None until they are there.
    """

    reading: Reading | None = None
    overview: Overview | None = None
    price: Price | None = None
    continuation: Continuation | None = None

    def take(self, result: Any) -> str:
        """Keep a result; its name."""
        name = type(result).__name__.lower()
        setattr(self, name, result)
        return name


class Controller:
    """One text, one model, one setting at a time, and what it is compared with: the model as it is.

    Args:
        model: reads the text; None when only saved maps are looked at.
        tokens: [token] their texts.
        saved: the maps to look at without a model.
        deliver: takes functions to be called where the listener may be called; calls them at once by default.
        listen: called with the name of what changed: "busy", "setting", "reading", "overview", "price",
            "continuation", "view", "unit", "query" or "problem".

    Attributes:
        plain: the model as it is.
        setting: what was asked for last.
        now: what is there under the setting shown; it may be that of an earlier setting while a new one is read.
        dense: the same of the model as it is.
        unit, query, view: what is looked at.
        busy: what is under way, or empty.
        problem: one sentence on what went wrong last, or empty.
    """

    def __init__(
        self,
        model: TextModel | None,
        tokens: list[str],
        saved: HeadMaps | None = None,
        deliver: Callable[[Callable[[], None]], None] = lambda call: call(),
        listen: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.model, self.tokens, self.saved, self.listen = model, tokens, saved, listen
        self.plain = self.setting = Setting.of_text(len(tokens))
        self.now, self.dense = Shown(), Shown()
        self.unit, self.query, self.view = 0, len(tokens) - 1, View()
        self.busy = self.problem = ""
        self._worker = Worker(deliver)

    # --- asking -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Read the text with the model as it is."""
        if self.model is not None:
            self._read()

    def change(self, **fields: Any) -> None:
        """Ask for another setting; a sentence in `problem` says why it cannot be, and what is shown stays."""
        if self.model is None:
            self._tell(NEEDS_MODEL)
            return
        setting = replace(self.setting, **fields)
        if setting == self.setting and not self.problem and (self.busy or self._is_shown):
            return
        self.setting = setting
        self.listen("setting")
        self._read()

    def toggle(self, token: int) -> None:
        """Evict a token, or give it back."""
        gone = set(self.setting.evicted if self.setting.kind == "chosen" else ()) ^ {token}
        self.change(kind="chosen", evicted=tuple(sorted(gone)))

    def reset(self) -> None:
        """Back to the model as it is."""
        self.change(**vars(self.plain))

    def cancel(self) -> None:
        """Stop what is under way; what is shown stays."""
        self._worker.cancel()
        if self.busy:
            self._set_busy("")

    def close(self) -> None:
        """Stop, and let go of everything that was read."""
        self.listen = lambda what: None
        self.cancel()
        self._worker.join(timeout=10)
        self.model, self.now, self.dense = None, Shown(), Shown()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way, where results are delivered at once; False after `timeout` seconds."""
        return self._worker.join(timeout)

    # --- looking ------------------------------------------------------------------------------------------------------

    def choose(self, unit: int) -> None:
        """Look at another head."""
        if 0 <= unit < len(self.units) and unit != self.unit:
            self.unit = unit
            self.listen("unit")

    def choose_query(self, query: int) -> None:
        """Look at another query's row; under re-computation its window is mapped."""
        query = min(max(query, 0), len(self.tokens) - 1)
        if query == self.query:
            return
        self.query = query
        self.listen("query")
        if self.setting.kind == "recompute" and self.model is not None:
            self._read()

    def show(self, **fields: Any) -> None:
        """Show maps in another way (fields of `View`)."""
        if self.model is None and fields.get("scale") == "logit":
            self._tell("logits need the model; a saved map holds probabilities only")
            return
        view = replace(self.view, **fields)
        if view != self.view:
            self.view = view
            self.listen("view")

    @property
    def maps(self) -> HeadMaps | None:
        """The maps shown."""
        return self.saved if self.now.reading is None else self.now.reading.maps

    @property
    def units(self) -> list[Unit]:
        """All heads; none before anything was read."""
        return [] if self.maps is None else self.maps.units

    @property
    def name(self) -> str:
        """Under which setting the model was that is shown; empty before anything was read."""
        if self.now.reading is None:
            return "" if self.saved is None else "saved record"
        return self.now.reading.setting.name

    @property
    def caption(self) -> str:
        """Which head, and which setting."""
        return f"{self.units[self.unit]} · {self.name}" if self.units else ""

    def tile(self) -> Tile | None:
        """What the view shows of the head."""
        return None if self.maps is None else tile_of(self.maps, self.unit, self.view)

    def row(self) -> Any:
        """The chosen query's row [token], and the ends of its scale; None where there is none."""
        return None if self.maps is None else row_of(self.maps, self.unit, self.query, self.view, len(self.tokens))

    def numbers(self, query: int, key: int) -> tuple[float | None, float | None]:
        """Exact probability and logit of a cell of the head shown."""
        return (None, None) if self.maps is None else numbers_at(self.maps, self.unit, query, key)

    def ranked(self, ranking: str) -> list[int]:
        """All heads in the order of one of `RANKINGS`; by layer where that is not known."""
        scores = self.scores(ranking)
        if scores is None:
            return list(range(len(self.units)))
        return np.argsort(scores if ranking in SHARPEST_FIRST else -scores, kind="stable").tolist()

    def scores(self, ranking: str) -> np.ndarray | None:
        """What heads are ranked by, [unit]; None where it is not known."""
        if ranking not in RANKINGS:
            raise SinkscopeError(f"{ranking!r} is no ranking; give one of {', '.join(RANKINGS)}.")
        return None if self.now.overview is None else self.now.overview.scores.get(ranking)

    @property
    def loss(self) -> Loss | None:
        """What the setting does to perplexity; None where no token was scored under both."""
        dense, now = self.dense.reading, self.now.reading
        return None if dense is None or now is None else loss_of(dense, now)

    def guesses(self, count: int = 6) -> list[tuple[int, float | None, float | None]]:
        """The likeliest next tokens at the chosen query, as `guesses_at`; empty before anything was read."""
        dense, now = self.dense.reading, self.now.reading
        return [] if dense is None or now is None else guesses_at(self.query, dense, now, count)

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def _is_shown(self) -> bool:
        """Whether what is shown was read under the setting, which is one that can be."""
        return self.now.reading is not None and self.name == self.setting.name

    def _read(self) -> None:
        try:
            self.setting.check(len(self.tokens))
        except SinkscopeError as error:
            self.cancel()
            self._tell(str(error))
            return
        self.problem = ""
        self._worker.submit(self._job(self.setting, self.query), self._take, self._end)
        self._set_busy(self.setting.name)

    def _job(self, setting: Setting, query: int) -> Any:
        model, dense, plain = self.model, self.dense, self.plain
        known = replace(dense)  # what is there for the job itself: the listener may take what it yields much later

        def as_it_is(is_overtaken: Callable[[], bool]) -> Iterator[tuple[Shown, Any]]:
            assert model is not None
            for result in model.read(plain, query, is_overtaken):
                known.take(result)
                yield dense, result

        def read(is_overtaken: Callable[[], bool]) -> Iterator[tuple[Shown, Any]]:
            assert model is not None
            if known.reading is None:
                for given in as_it_is(is_overtaken):
                    yield given
                    if not setting.is_baseline:  # its reading is what comes first, and enough to compare with
                        break
            elif setting.is_baseline:
                yield dense, known.reading
            if not setting.is_baseline:
                fresh = Shown()
                for result in model.read(setting, query, is_overtaken):
                    yield fresh, result
            if known.continuation is None or not known.continuation.done:
                yield from as_it_is(is_overtaken)

        return read

    def _take(self, given: tuple[Shown, Any]) -> None:
        shown, result = given
        what = shown.take(result)
        wanted = shown is self.dense if self.setting.is_baseline else shown is not self.dense
        if (wanted or self.now.reading is None) and what == "reading":
            self.now = shown
            self._fit(result.maps)
        self.listen(what)

    def _fit(self, maps: HeadMaps) -> None:
        """Look at something that is there."""
        self.unit = min(self.unit, len(maps.units) - 1)
        window = self.view.window
        if window and (window[0] < maps.first or max(window[1], window[3]) > maps.first + maps.length):
            self.view = replace(self.view, window=None)

    def _end(self, problem: BaseException | None) -> None:
        self._set_busy("")
        if problem is not None:
            self._tell(sentence(problem))

    def _set_busy(self, what: str) -> None:
        self.busy = what
        self.listen("busy")

    def _tell(self, problem: str) -> None:
        self.problem = problem
        self.listen("problem")


def sentence(problem: BaseException) -> str:
    """An exception as one sentence."""
    if isinstance(problem, SinkscopeError):
        return str(problem)
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0]}"
