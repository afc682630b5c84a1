"""What a model could have read, without a model: maps, and a reader that waits to be told to go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
import xarray as xr

from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pixels import MapOptions
from sinkscope.explorer.results import Ahead, Continuation, Guesses, HeadMaps, Overview, Price, Reading, Unit, Wanted

WAIT = 30  # seconds until a test gives up
LENGTH = 24
TEXTS = [f"token {place}" for place in range(LENGTH)]


class FixedMaps(HeadMaps):
    """Maps of one head, given as they are."""

    def __init__(self, weights: np.ndarray, first: int = 0) -> None:
        self.weights, self.units, self.first = weights.astype(np.float32), [Unit(0, 0)], first
        self.length = len(weights)
        self.starts = np.arange(self.length)

    def logits(self, unit, rows, columns):
        with np.errstate(divide="ignore"):
            return np.log(self.weights[rows, columns]) + 7

    def probabilities(self, unit, rows, columns):
        return self.weights[rows, columns].copy()


def random_maps(tokens: int = 60, first: int = 0, seed: int = 0) -> FixedMaps:
    scores = np.random.default_rng(seed).normal(0, 3, (tokens, tokens))
    scores[:, 0] += 3
    weights = np.where(np.tri(tokens, dtype=bool), np.exp(scores), np.nan)
    return FixedMaps(weights / np.nansum(weights, 1, keepdims=True), first)


class Gate:
    """A reading under way stops here until it is let through."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()


class FakeTextModel:
    """What the controller asks of a `TextModel`.

    Attributes:
        gates: by the name of a configuration, where its reading waits.
        ahead: the same behind the map that it tells of ahead of the rest; without a gate it tells of none.
        errors: by the name of a configuration, what its reading ends with.
        asked: what was read so far: name of the configuration, and query.
    """

    tokenizer, identity, weights = None, "a model of tests", ()
    anatomy = SimpleNamespace(numbers=[0])

    def look_at_weights(self) -> None:
        """They are always the same."""

    def __init__(self, length: int = LENGTH) -> None:
        self.ids = torch.arange(length) + 3
        self.gates: dict[str, Gate] = {}
        self.ahead: dict[str, Gate] = {}
        self.errors: dict[str, Exception] = {}
        self.asked: list[tuple[str, int]] = []

    def read(
        self, configuration: Configuration, query: int, is_overtaken: Callable[[], bool], wanted: Wanted | None = None
    ) -> Iterator[object]:
        self.asked.append((configuration.name, query))
        if configuration.name in self.gates:
            self.gates[configuration.name].begun.set()
            assert self.gates[configuration.name].go.wait(WAIT)
        if is_overtaken():
            return
        length, seed = len(self.ids), sum(map(ord, configuration.name))
        first = max(0, query - configuration.window + 1) if configuration.is_recomputed else 0
        stop = query + 1 if configuration.is_recomputed else length
        maps = random_maps(stop - first, first, seed)
        if wanted is not None and configuration.name in self.ahead:
            wanted.tell(Ahead(configuration, maps))
            self.ahead[configuration.name].begun.set()
            assert self.ahead[configuration.name].go.wait(WAIT)
            if is_overtaken():
                return
        if configuration.name in self.errors:
            raise self.errors[configuration.name]
        losses = np.random.default_rng(seed).random(length).astype(np.float32)
        losses[0] = np.nan
        guesses = Guesses(np.tile(np.arange(16), (length, 1)), np.full((length, 16), 1 / 16, dtype=np.float32))
        yield Reading(configuration, maps, losses, guesses, xr.Dataset())
        yield Overview(configuration, np.zeros((1, 8, 8), np.uint8), {"mass": np.array([0.5])})
        yield Price(configuration, 1000, 2000)
        for done in (False, True):
            if is_overtaken():
                return
            yield Continuation(configuration, "on and on", done)


def ask(controller: Controller, **fields: object) -> None:
    controller.change(**fields)
    assert controller.wait(WAIT)


def is_whole(controller: Controller, name: str) -> bool:
    """Whether what is shown is there in full, all of it of one configuration."""
    now = controller.now
    of = {each.configuration.name for each in (now.reading, now.overview, now.price, now.continuation)}
    return controller.name == name and of == {name} and now.continuation.done


@contextmanager
def begun(made: Controller) -> Iterator[Controller]:
    """A controller once it has read its text; closed at the end."""
    made.begin()
    assert made.wait(WAIT)
    yield made
    made.close()


def as_at_first(made: Controller, unit: int) -> None:
    """Look at this head, in the usual way."""
    made.choose(unit)
    made.show(**vars(MapOptions()))
