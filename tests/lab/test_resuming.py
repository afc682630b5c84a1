"""A training that was stopped goes on where it was, and ends where one that was not ends, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope import lab
from sinkscope.errors import SinkscopeError
from sinkscope.lab import runs
from sinkscope.lab.runs import UnderWay
from tests.lab.test_bigram import SMALL
from tests.lab.test_language import TINY

TASKS = {
    "bigram": lambda folder, arm: lab.bigram_backcopy(arm, 0, 5, folder=folder, **SMALL),
    "language": lambda folder, arm: lab.language_model(arm, 0, 5, folder=folder, **TINY),
}


@pytest.fixture
def kept(monkeypatch):
    """The steps after which something was kept; a training ends after step `kept.last`."""

    class Kept(list):
        last = None

    steps, keep = Kept(), UnderWay.keep

    def counted(self, done, *given):
        keep(self, done, *given)
        steps.append(done)
        if done == steps.last:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "SECONDS", 0.0)
    monkeypatch.setattr(UnderWay, "keep", counted)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["softmax1", "sink token"])
@pytest.mark.parametrize("task", TASKS)
def test_it_ends_where_one_that_was_not_stopped_ends(task, arm, tmp_path, kept):
    whole = TASKS[task](tmp_path / "whole", arm)
    assert kept == [1, 2, 3, 4, 5]
    kept.clear()
    kept.last = 3
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        TASKS[task](tmp_path / "stopped", arm)
    (file,) = (tmp_path / "stopped").iterdir()
    assert file.name.endswith(".training.safetensors")
    kept.last = None
    found = TASKS[task](tmp_path / "stopped", arm)
    assert kept == [1, 2, 3, 4, 5] and not file.exists()
    for name in set(whole.data_vars) - {"seconds"}:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    assert list(np.ravel(found["seconds"])) > [0.0]


def test_a_damaged_file_of_one_under_way_is_refused_by_its_name(tmp_path, kept):
    kept.last = 3
    with pytest.raises(KeyboardInterrupt):
        TASKS["bigram"](tmp_path, "softmax1")
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(SinkscopeError, match=r"the training under way .* is damaged.*delete it to train"):
        TASKS["bigram"](tmp_path, "softmax1")
