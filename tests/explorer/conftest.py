"""A controller over a reader that needs no model."""

from __future__ import annotations

import pytest

from sinkscope.explorer.controller import Controller
from tests.explorer.fakes import TEXTS, WAIT, FakeTextModel


@pytest.fixture
def reader():
    return FakeTextModel()


@pytest.fixture
def controller(reader):
    """One whose text has been read with the model as it is; `heard` is what it has said since."""
    made = Controller(reader, TEXTS)
    made.begin()
    assert made.wait(WAIT)
    made.heard = []
    made.listen = made.heard.append
    yield made
    for gate in [*reader.gates.values(), *reader.ahead.values()]:
        gate.go.set()
    made.close()
