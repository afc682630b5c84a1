"""The explorer without its widgets: what is asked for, what is shown, and which of them belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sinkscope.attention.placement import is_same
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.background import Deliver, Worker, sentence
from sinkscope.explorer.comparing import NEEDS_MODEL, Comparison, Message, job_of
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.derived import derived, why_not
from sinkscope.explorer.history import History
from sinkscope.explorer.overview import free_scores, order_of
from sinkscope.explorer.parts import Parts
from sinkscope.explorer.pixels import RANKINGS, MapOptions, Tile
from sinkscope.explorer.results import Ahead, Change, HeadMaps, Loss, Reading, Results, Unit, guesses_at, loss_of
from sinkscope.explorer.state import adopt, read_state, signature, state_of, state_text
from sinkscope.explorer.text_model import TextModel

CLOSED = "the explorer is closed; open it again with sinkscope.explore"


class Controller:
    """One text, one model, one configuration at a time, and what it is compared with: the model as it is.

    Args:
        model: reads the text; None when only saved maps are looked at.
        tokens: [token] their texts.
        saved: the maps to look at without a model.
        deliver: takes functions to be called where the listener may be called; calls them at once by default.
        listen: called with what changed.

    Attributes:
        configuration: what was asked for last; `baseline` is that of the model as it is.
        now: what is there under the configuration shown, which may be an earlier one while a new one is read; `dense`
            is the same of the model as it is.
        ahead: maps of one layer that are there before the rest of what is being read, or None.
        unit, query, map_options: what is looked at, and how.
        comparison, parts: what stands beside it, and the spans of the text.
        history: the settings that were shown.
        offered: policies and normalisers of one's own for the lists, by field and label.
        awaited: the heads shown and pinned that a state tells of, until all heads are known.
        busy: what is under way, or empty.
        is_closed: whether it has let go of the model and of everything that was read.
        problem: one sentence on what went wrong last, or empty.
    """

    def __init__(
        self,
        model: TextModel | None,
        tokens: list[str],
        saved: HeadMaps | None = None,
        deliver: Deliver = lambda call: call(),
        listen: Callable[[Change], None] = lambda change: None,
    ) -> None:
        self.model, self.tokens, self.saved, self.listen = model, tokens, saved, listen
        self.baseline = self.configuration = Configuration.of_text(len(tokens))
        self.now, self.dense = Results(), Results()
        self.ahead: Ahead | None = None
        self.unit, self.query, self.map_options = 0, len(tokens) - 1, MapOptions()
        self._is_unit_chosen = False
        self.comparison, self.parts = Comparison(self), Parts(self)
        self.awaited: tuple[Unit | None, Unit | None] = (None, None)
        self.history = History()
        self.offered: dict[str, dict[str, Any]] = {}
        self.busy = self.problem = ""
        self.is_closed = False
        self._worker = Worker(deliver)

    # --- asking -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Read the text with the model as it is."""
        self._read()

    def change(self, **fields: Any) -> None:
        """Ask for another configuration; a sentence in `problem` says why it cannot be, and what is shown stays.

        Args:
            fields: those of `Configuration` that change; `kind` is another word for `policy`.

        Raises:
            SinkscopeError: a field, or a name, that there is not; an object that is no policy or no normaliser; the
                explorer is closed, as whatever else is asked of it then.
        """
        self.check_open()
        if self.model is None:
            self.tell(NEEDS_MODEL)
            return
        if "kind" in fields:
            fields.setdefault("policy", fields.pop("kind"))
        unknown = fields.keys() - vars(self.baseline).keys()
        if unknown:
            raise SinkscopeError(f"{min(unknown)!r} is no control; give some of {', '.join(vars(self.baseline))}.")
        configuration = replace(self.configuration, **fields)
        if configuration == self.configuration and not self.problem and (self.busy or self._is_shown):
            return
        self.configuration = configuration
        self.listen(Change.CONFIGURATION)
        self._read()

    def toggle(self, token: int) -> None:
        """Evict a token, or give it back."""
        self.change(policy="chosen", evicted=tuple(sorted({*self.configuration.chosen_tokens} ^ {token})))

    def undo(self) -> None:
        """Back to the setting that was shown before."""
        self.check_open()
        if self.can_undo:
            self.change(**vars(self.history.back(self.configuration)))
        else:
            self.tell("there is nothing to undo: no other setting was shown before this one")

    def redo(self) -> None:
        """Forth to the setting that was undone last."""
        self.check_open()
        if self.history.can_go_forth:
            self.change(**vars(self.history.forth()))
        else:
            self.tell("there is nothing to redo: nothing was undone since another setting was chosen")

    @property
    def can_undo(self) -> bool:
        return self.history.can_go_back(self.configuration)

    def reset(self) -> None:
        """Back to the model as it is."""
        self.change(**vars(self.baseline))

    def cancel(self) -> None:
        """Stop what is under way; what is shown stays."""
        self._worker.cancel()
        if self.busy:
            self._set_busy("")

    def close(self) -> None:
        """Stop, and let go of everything that was read."""
        self.listen = lambda change: None
        self.cancel()
        self._worker.join(timeout=10)
        self.is_closed, self.model, self.now, self.dense = True, None, Results(), Results()
        self.comparison.pinned = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way, where results are delivered at once; False after `timeout` seconds."""
        return self._worker.join(timeout)

    # --- looking ------------------------------------------------------------------------------------------------------

    def choose(self, unit: int) -> None:
        self.check_open()
        if 0 <= unit < len(self.units):
            self._is_unit_chosen = True
            if unit != self.unit:
                self.unit = unit
                self.listen(Change.UNIT)

    def open_on(self, mass: np.ndarray | None) -> None:
        """Look at the head with the most of it ([unit], sink mass), unless one was chosen; None where it is unknown."""
        if not self._is_unit_chosen and mass is not None and np.isfinite(mass).any():
            self.unit, self._is_unit_chosen = int(np.nanargmax(mass)), True

    def choose_query(self, query: int) -> None:
        """Look at another query's row; under re-computation its window is mapped."""
        self.check_open()
        query = min(max(query, 0), len(self.tokens) - 1)
        if query == self.query:
            return
        self.query = query
        self.listen(Change.QUERY)
        if self.configuration.is_recomputed:
            self._read()

    def show(self, **fields: Any) -> None:
        """Show maps in another way (fields of `MapOptions`)."""
        self.check_open()
        if self.model is None and fields.get("scale") == "logit":
            self.tell("logits need the model; a saved map holds probabilities only")
            return
        options = replace(self.map_options, **fields)
        if problem := why_not(self.now_maps, self.unit, options) or self.parts.why_not(options):
            self.tell(problem)
            return
        if options != self.map_options:
            self.map_options = options
            self.listen(Change.MAP_OPTIONS)

    @property
    def now_maps(self) -> HeadMaps | None:
        """The maps of single heads."""
        return self.saved if self.now.reading is None else self.now.reading.maps

    @property
    def maps(self) -> HeadMaps | None:
        """The maps that are shown: of single heads, or over several; with a cell for each token or word."""
        return None if self.now_maps is None else self.derived(self.now_maps)

    def derived(self, maps: HeadMaps) -> HeadMaps:
        """Maps of single heads as they are shown."""
        return derived(maps, self.map_options, self.parts.words, self.tokens)

    @property
    def head_maps(self) -> HeadMaps | None:
        """The same with a cell for each token."""
        return None if self.now_maps is None else derived(self.now_maps, self.map_options)

    @property
    def units(self) -> list[Unit]:
        """All heads; none before anything was read."""
        return [] if self.maps is None else self.maps.units

    @property
    def name(self) -> str:
        """The name of the configuration that is shown; empty before anything was read."""
        if self.now.reading is None:
            return "" if self.saved is None else "saved record"
        return self.now.reading.configuration.name

    @property
    def caption(self) -> str:
        """What the map of the head shown is of; empty before anything was read."""
        return "" if self.maps is None else self.comparison.shown.caption

    def tile(self) -> Tile | None:
        """The part of the map that is looked at; of the difference where that is compared."""
        return self.comparison.tiles()[0]

    def row(self) -> Any:
        """The chosen query's row [token], and the ends of its scale; None where there is none."""
        return self.comparison.shown.row(self.query, self.map_options, len(self.tokens))

    def numbers(self, query: int, key: int) -> tuple[float | None, float | None]:
        """Exact probability and logit of a cell of the head shown."""
        return self.comparison.shown.numbers(query, key)

    def ranked(self, ranking: str) -> list[int]:
        """All heads in the order of one of `RANKINGS`; by layer where that is not known."""
        return order_of(self.scores(ranking), ranking, len(self.units))

    def scores(self, ranking: str) -> np.ndarray | None:
        """What heads are ranked by, [unit]; None where it is not known."""
        if ranking not in RANKINGS:
            raise SinkscopeError(f"{ranking!r} is no ranking; give one of {', '.join(RANKINGS)}.")
        return None if self.now.overview is None else self.now.overview.scores.get(ranking)

    @property
    def side_by_side(self) -> list[tuple[str, Results]]:
        """What stands side by side, with its name: the model as it is, and the configuration where that is another."""
        both = [("dense", self.dense), (self.name, self.now)]
        both = both[:1] if self.now is self.dense else both
        other = self.comparison.other
        return both if other is None else [*both, (f"pinned: {other.configuration.name}", other.results)]

    @property
    def loss(self) -> Loss | None:
        """What the configuration does to perplexity; None where no token was scored under both."""
        dense, now = self.dense.reading, self.now.reading
        return None if dense is None or now is None else loss_of(dense, now)

    def guesses(self, count: int = 6) -> list[tuple[int, *tuple[float | None, ...]]]:
        """The likeliest next tokens at the chosen query, as `guesses_at`; empty before anything was read.

        Where a setting is pinned, its probability comes last.
        """
        dense, now = self.dense.reading, self.now.reading
        if dense is None or now is None:
            return []
        other = None if self.comparison.other is None else self.comparison.other.results.reading
        return guesses_at(self.query, dense, now, count, *([] if other is None else [other]))

    # --- the state as a text ------------------------------------------------------------------------------------------

    @property
    def signature(self) -> dict[str, str]:
        """What names the text and the model in a state."""
        return signature(self.model, self.tokens)

    @property
    def state(self) -> str:
        """What is looked at as a short text; `restore` takes it.

        Raises:
            SinkscopeError: the policy or the normaliser is an object of one's own; the explorer is closed.
        """
        self.check_open()
        return state_text(state_of(self), self.signature, len(self.tokens))

    def restore(self, text: str) -> None:
        """Look at what a `state` tells of.

        Raises:
            SinkscopeError: it is of another text or model, or no state; what is shown stays.
        """
        self.adopt(text)
        for change in (Change.CONFIGURATION, Change.UNIT, Change.QUERY, Change.MAP_OPTIONS, Change.PARTNER):
            self.listen(change)
        self._read()

    def adopt(self, text: str) -> None:
        """The same before `begin`: nothing is told, and nothing is read."""
        self.check_open()
        adopt(self, read_state(text, self.signature, len(self.tokens)))

    def find_awaited(self) -> None:
        """Choose the heads that a state tells of once all heads are known."""
        units, (unit, other) = self.units, self.awaited
        if units and (unit, other) != (None, None):
            if unit in units:
                self.unit, self._is_unit_chosen = units.index(unit), True
            self.comparison.pinned_unit = units.index(other) if other in units else None
            self.awaited = (None, None)

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def _is_shown(self) -> bool:
        """Whether what is shown was read under the policy and the normaliser that were asked for."""
        if self.now.reading is None:
            return False
        shown, asked = self.now.reading.configuration, self.configuration
        is_same_policy = is_same(shown.policy_slot, asked.policy_slot)
        return is_same_policy and is_same(shown.normaliser_slot, asked.normaliser_slot)

    def check_open(self) -> None:
        if self.is_closed:
            self.problem = CLOSED
            raise SinkscopeError(f"{CLOSED}.")

    def _read(self) -> None:
        if self.model is None:
            return
        try:
            self.configuration.check(len(self.tokens))
        except SinkscopeError as error:
            self.cancel()
            self.tell(str(error))
            return
        self.problem = ""
        unread = partial(self.comparison.unread, self.configuration)
        layer = self.units[self.unit].layer if self.units else None
        what = self.model, self.configuration, self.baseline, self.query, self.dense, unread
        job = job_of(*what, layer, self._worker.ahead)
        self._worker.submit(job, self._take, self._end)
        self._set_busy(self.configuration.name)

    def _take(self, message: Message) -> None:
        results, result = message
        if isinstance(result, Ahead):
            self.ahead = result
            self.listen(result.kind)
            return
        known, had_ahead = self.now.reading, self.ahead is not None
        results.take(result)
        if self.comparison.is_apart(results):
            self.listen(Change.PARTNER)
            return
        is_wanted = (results is self.dense) == self.configuration.is_baseline
        if isinstance(result, Reading) and (is_wanted or self.now.reading is None):
            self.now, self.ahead = results, None
            self.unit = min(self.unit, len(result.maps.units) - 1)
            self.find_awaited()
            self.open_on(free_scores(result.record).get("mass"))
            if is_wanted:
                self.history.note(result.configuration, self.loss)
                self.comparison.take(result.configuration, results)
            if problem := why_not(self.now_maps, self.unit, self.map_options):  # of a state that nothing was known of
                self.map_options = replace(self.map_options, over="head", cells="tokens")
                self.tell(problem)
            tokens, region = result.maps.tokens, self.map_options.region
            if region and (region[0] < tokens.start or max(region[1], region[3]) > tokens.stop):
                self.map_options = replace(self.map_options, region=None)
        is_map_shown = isinstance(result, Reading) and known is not None and known.maps is result.maps and not had_ahead
        self.listen(Change.SCORES if is_map_shown else result.kind)

    def _end(self, problem: BaseException | None) -> None:
        self._set_busy("")
        if problem is not None:
            self.tell(sentence(problem))

    def _set_busy(self, what: str) -> None:
        if not what and self.ahead is not None:  # the rest of what was being read will not come
            self.ahead = None
            self.listen(Change.AHEAD)
        self.busy = what
        self.listen(Change.BUSY)

    def tell(self, problem: str) -> None:
        self.problem = problem
        self.listen(Change.PROBLEM)
