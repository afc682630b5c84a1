"""A second setting, or a second head, beside the one that is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.difference import difference_of, difference_values
from sinkscope.explorer.pixels import (
    MapOptions,
    Tile,
    numbers_at,
    pair_of,
    row_of,
    tile_of,
    values_of,
)
from sinkscope.explorer.results import Change, HeadMaps, Loss, Reading, Result, Results, Wanted, loss_of

if TYPE_CHECKING:
    from sinkscope.explorer.background import Job
    from sinkscope.explorer.controller import Controller
    from sinkscope.explorer.text_model import TextModel

NEEDS_MODEL = "this needs the model; a saved record was opened without one"
NOT_PINNED = "re-computation has maps of its own for every query, so it cannot be pinned"
NEEDS_PIN = "a saved record has no dense model to compare with; pin a head, then choose another"


Message = tuple[Results, Result]  # a result, and where it belongs


@dataclass
class Pinned:
    """A setting that stays in view while others are tried."""

    configuration: Configuration
    results: Results = field(default_factory=Results)


@dataclass(frozen=True)
class Side:
    """A head under a setting, one of two; `maps` is None while it is not read."""

    setting: str
    maps: HeadMaps | None
    unit: int

    @property
    def caption(self) -> str:
        return self.setting if self.maps is None else f"{self.maps.name(self.unit)} · {self.setting}"

    def row(self, query: int, options: MapOptions, tokens: int) -> Any:
        """A query's row [token], and the ends of its scale; None where there is none."""
        return None if self.maps is None else row_of(self.maps, self.unit, query, options, tokens)

    def numbers(self, query: int, key: int) -> tuple[float | None, float | None]:
        """Exact probability and logit of a cell."""
        return (None, None) if self.maps is None else numbers_at(self.maps, self.unit, query, key)


class Comparison:
    """What a controller shows, and what that is compared with.

    Attributes:
        pinned: the setting that was pinned; None for the model as it is.
        pinned_unit: the head that was pinned; None for the one that is shown.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.pinned: Pinned | None = None
        self.pinned_unit: int | None = None

    # --- pinning ------------------------------------------------------------------------------------------------------

    def pin_setting(self) -> None:
        """Compare with the setting that is shown now, whatever is shown later."""
        controller = self._controller
        controller.check_open()
        reading = controller.now.reading
        if controller.model is None:
            controller.tell(NEEDS_MODEL)
        elif reading is None:
            controller.tell("nothing was read yet; wait for the first map, then pin its setting")
        elif reading.configuration.is_recomputed:
            controller.tell(NOT_PINNED)
        else:
            self.pinned = Pinned(reading.configuration, controller.now)
            controller.listen(Change.PARTNER)

    def pin_head(self) -> None:
        """Compare with the head that is shown now, whichever is shown later."""
        self._controller.check_open()
        if self._controller.units:
            self.pinned_unit = self._controller.unit
            self._controller.listen(Change.PARTNER)
        else:
            self._controller.tell("nothing was read yet; wait for the first map, then pin its head")

    def unpin(self) -> None:
        """Compare with the model as it is, and the same head."""
        self._controller.check_open()
        self.pinned = self.pinned_unit = None
        self._controller.listen(Change.PARTNER)

    def take(self, configuration: Configuration, results: Results) -> None:
        """What is shown now is what was pinned, where it is the same setting: it is not read twice."""
        if self.pinned is not None and self.pinned.configuration == configuration:
            self.pinned.results = results

    def is_apart(self, results: Results) -> bool:
        """Whether they are those of the pinned setting, while another one is shown."""
        is_pinned = self.pinned is not None and results is self.pinned.results
        return is_pinned and results is not self._controller.now and results is not self._controller.dense

    def unread(self, configuration: Configuration) -> Pinned | None:
        """The pinned setting, where it is still to be read beside a configuration and the model as it is."""
        pinned, model = self.pinned, self._controller.model
        is_apart = pinned is not None and pinned.results is not self._controller.dense
        if pinned is not None and is_apart and model is not None and not is_current(pinned.results, model):
            pinned.results = Results()
        if pinned is None or pinned.results.is_whole or pinned.results is self._controller.dense:
            return None
        return None if pinned.configuration == configuration else pinned

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def shown(self) -> Side:
        """What is on the screen: what was read, or one of its heads that is there before the rest."""
        controller, ahead = self._controller, self._controller.ahead
        if ahead is not None and self.is_ahead:
            unit = ahead.maps.units.index(controller.units[controller.unit])
            return Side(ahead.configuration.name, controller.derived(ahead.maps), unit)
        return self.settled

    @property
    def settled(self) -> Side:
        """What was read in full, of which losses and all else are."""
        return Side(self._controller.name, self._controller.maps, self._controller.unit)

    @property
    def is_ahead(self) -> bool:
        """Whether the head on the screen is one that is there before the rest of what is being read."""
        controller, ahead = self._controller, self._controller.ahead
        is_one_head = controller.map_options.compare == "nothing" and controller.map_options.over == "head"
        return ahead is not None and is_one_head and controller.units[controller.unit] in ahead.maps.units

    @property
    def partner(self) -> Side:
        """What was pinned; where nothing was, the same head of the model as it is. A head alone is as now."""
        controller = self._controller
        unit = controller.unit if self.pinned_unit is None else self.pinned_unit
        if controller.model is None:
            return Side(controller.name, None if self.pinned_unit is None else controller.maps, unit)
        if self.pinned is not None:
            name, results = self.pinned.configuration.name, self.pinned.results
        elif self.pinned_unit is not None:
            name, results = controller.name, controller.now
        else:
            name, results = "dense", controller.dense
        reading = results.reading
        return Side(name, None if reading is None else controller.derived(reading.maps), unit)

    @property
    def problem(self) -> str:
        """Why there is nothing to compare with, in words; empty where there is."""
        shown, partner = self.shown, self.partner
        if partner.maps is None:
            return NEEDS_PIN if self._controller.model is None else f"{partner.setting} is not read yet"
        same = partner.maps is shown.maps
        if shown.maps is None or (same and shown.maps.members(partner.unit) == shown.maps.members(shown.unit)):
            return "both are the same head and setting: choose another setting or head, or pin one"
        if shown.maps.first >= partner.maps.tokens.stop or partner.maps.first >= shown.maps.tokens.stop:
            return "the two maps have no token in common"
        return ""

    @property
    def caption(self) -> str:
        """What the map shown is of."""
        if self.is_difference:
            return f"{self.shown.caption} minus {self.partner.caption}"
        return self._controller.caption

    @property
    def said(self) -> str:
        """A sentence on how the cells of the map shown come about; empty for those of one head."""
        shown = self.shown
        return "" if shown.maps is None else shown.maps.said(shown.unit)

    @property
    def is_difference(self) -> bool:
        """Whether the map shown is that of the difference."""
        return self._controller.map_options.compare == "difference" and not self.problem

    @property
    def is_beside(self) -> bool:
        """Whether the partner has a map of its own."""
        return self._controller.map_options.compare == "side by side" and not self.problem

    def tiles(self) -> tuple[Tile | None, Tile | None]:
        """The tile of what is shown, or of the difference, and that of the partner where both stand side by side."""
        shown, other, options = self.shown, self.partner, self._controller.map_options
        if shown.maps is None:
            return None, None
        if other.maps is not None and (self.is_difference or self.is_beside):
            both = shown.maps, shown.unit, other.maps, other.unit, options
            return (difference_of(*both), None) if self.is_difference else pair_of(*both)
        return tile_of(shown.maps, shown.unit, options), None

    def values(self) -> list[tuple[str, str, np.ndarray, slice, slice]]:
        """What the settled maps are of, cell by cell: caption, scale or "difference", values, queries and keys.

        Values are probabilities or logits, [row, column]; those of a difference are on its scale.
        """
        shown, other, options = self.settled, self.partner, self._controller.map_options
        if shown.maps is None:
            return []
        if self.is_difference and other.maps is not None:
            found = difference_values(shown.maps, shown.unit, other.maps, other.unit, options)
            return [] if found is None else [(self.caption, "difference", *found)]
        sides = [shown, other] if self.is_beside else [shown]
        return [
            (side.caption, options.scale, *values_of(side.maps, side.unit, options))
            for side in sides
            if side.maps is not None
        ]

    def numbers(self, query: int, key: int) -> tuple[float | None, float | None]:
        """Exact probability and logit of a cell of the partner."""
        return self.partner.numbers(query, key)

    @property
    def other(self) -> Pinned | None:
        """The pinned setting, where it was read and is neither the model as it is nor what is shown."""
        pinned, now = self.pinned, self._controller.now.reading
        if pinned is None or pinned.results.reading is None or pinned.configuration.is_baseline:
            return None
        return None if now is not None and now.configuration == pinned.configuration else pinned

    @property
    def loss(self) -> Loss | None:
        """The perplexities of the pinned setting (`dense`) and of what is shown; None where those are not two."""
        now, other = self._controller.now.reading, None if self.other is None else self.other.results.reading
        return None if now is None or other is None else loss_of(other, now)


def is_current(results: Results, model: TextModel) -> bool:
    """Whether the text was read with the weights as they are now; where it was not read, nothing is old."""
    return results.reading is None or results.reading.weights == model.weights


def job_of(
    model: TextModel,
    configuration: Configuration,
    baseline: Configuration,
    query: int,
    dense: Results,
    unread: Callable[[], Pinned | None],
    layer: int | None,
    tell: Callable[[Message], None],
) -> Job:
    """What is to be read for a configuration: the model as it is too, where it was not, and the pinned setting.

    `unread` is asked for that once it is known whether the weights are still the same.

    `tell` is called with the maps of a layer that are there before all of the configuration is read.
    """
    # what is there for the job itself: the listener may take what it yields much later
    is_usable = is_current(dense, model) and (dense.reading is None or dense.reading.is_scored)
    known = replace(dense) if is_usable else Results()

    def as_it_is(is_overtaken: Callable[[], bool]) -> Iterator[Message]:
        for result in model.read(baseline, query, is_overtaken):
            known.take(result)
            yield dense, result

    def read(is_overtaken: Callable[[], bool]) -> Iterator[Message]:
        nonlocal known
        model.look_at_weights()
        known, pinned = known if is_current(known, model) else Results(), unread()
        if known.reading is None:
            for results, result in as_it_is(is_overtaken):
                yield results, result
                if not configuration.is_baseline and isinstance(result, Reading) and result.is_scored:
                    break  # which is enough to compare another configuration with
        elif configuration.is_baseline:
            yield dense, known.reading
        if not configuration.is_baseline:
            fresh = Results()
            wanted = None if layer is None else Wanted(layer, lambda ahead: tell((fresh, ahead)))
            for result in model.read(configuration, query, is_overtaken, wanted):
                yield fresh, result
        if not known.is_whole or not is_current(known, model):  # other weights may have turned up on the way
            yield from as_it_is(is_overtaken)
        if pinned is not None:
            for result in model.read(pinned.configuration, query, is_overtaken):
                yield pinned.results, result

    return read
