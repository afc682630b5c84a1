"""An interrupt on any line of sinkscope's code, and all that could be left on a model."""

from __future__ import annotations

import copy
import gc
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch._dynamo import eval_frame

import sinkscope
from sinkscope.models import compiled
from sinkscope.models.trial import SCOPED
from sinkscope.scope.interface import CROSSING, EVICTIONS, NORMALISERS, SEEN
from sinkscope.streaming import ties
from tests.support.model_state import state_of

ROOT = str(Path(sinkscope.__file__).parent)


def left_on(model) -> list[object]:
    """What there is on a model, in its modules, in our tables of modules and in torch."""
    shared = [each for module in model.modules() for each in ties._SHARED.get(module, {}).values()]
    return [
        copy.deepcopy(state_of(model)),
        [sorted(vars(module)) for module in model.modules()],
        [len(table) for table in (SCOPED, NORMALISERS, EVICTIONS, CROSSING, SEEN, compiled._OPEN, compiled._BEFORE)],
        sum(len(each.tickets) + each.undo.is_entered for each in shared),
        eval_frame._stance.stance,
        len(torch.overrides._get_current_function_mode_stack()),
    ]


class Lines:
    """Counts the lines of sinkscope that run, and raises KeyboardInterrupt before the `at`-th."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.places = at, list[tuple[str, int]]()

    def __call__(self, frame, event, _):
        return self._line if frame.f_code.co_filename.startswith(ROOT) else None

    def _line(self, frame, event, _):
        if event == "line":
            self.places.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.places) - 1 == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def traced(act: Callable[[], object], at: int | None = None) -> Lines:
    lines, before = Lines(at), sys.gettrace()
    gc.disable()  # what it would finalise has lines of its own, in which an interrupt is lost
    sys.settrace(lines)
    try:
        act()
    finally:
        sys.settrace(before)
        gc.enable()
    return lines


def each_line_once(places: list[tuple[str, int]], chosen: random.Random, most: int) -> list[int]:
    """The number of one of the times that each line runs, any; of so many lines at most."""
    times = defaultdict(list)
    for number, place in enumerate(places):
        times[place].append(number)
    picked = [chosen.choice(numbers) for numbers in times.values()]
    return sorted(chosen.sample(picked, min(most, len(picked))))
