"""A model that counts its forward passes, and a text for it."""

from __future__ import annotations

import pytest

from tests.experiments.ablating import Interrupted
from tests.support import zoo


@pytest.fixture
def model():
    return zoo.build("llama")


@pytest.fixture
def ids():
    return zoo.inputs("llama", batch=1, tokens=90)["input_ids"]


@pytest.fixture
def forwards(model):
    """Counts forward passes over blocks; raises in the one that `stop_at` names."""

    class Forwards:
        __module__ = "sinkscope"  # else a run's identity would tell of the hook, which is another one at every count
        count, stop_at = 0, None

        def __call__(self, module, args, kwargs):
            given = args[0] if args else kwargs["input_ids"]
            if given.shape[1] > 1:  # rotary geometry is found with single tokens
                self.count += 1
            if self.stop_at is not None and self.count == self.stop_at:
                raise Interrupted

    counter = Forwards()
    model.register_forward_pre_hook(counter, with_kwargs=True)
    return counter
