"""What is shown while a user waits: a bar, and a line for each stage of a long run."""

from __future__ import annotations

import pytest

from sinkscope import progress
from sinkscope.progress import Stages, progress_bar


def test_each_stage_has_a_line_with_what_is_left(capsys):
    stages = Stages(["reading", "writing"], True)
    with stages.next() as left:
        assert left == ["writing"]
        with progress_bar(1, "token", True) as bar:
            assert not bar.leave  # it goes away, the line stays
    with stages.next() as left:
        assert left == []
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("reading:", "writing:"))]
    assert lines == ["reading: 0 s (left: writing)", "writing: 0 s (all measured)"]
    with progress_bar(1, "token", True) as bar:
        assert bar.leave


@pytest.mark.parametrize("shown", [None, False])
def test_a_short_run_and_one_that_is_to_be_silent_have_none(capsys, monkeypatch, shown):
    if shown is False:
        monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with Stages(["reading"], shown).next():
        pass
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_has_no_line(capsys):
    with pytest.raises(ValueError, match="no text"), Stages(["reading"], True).next():
        raise ValueError("no text")
    assert capsys.readouterr().err == "" and progress_bar(1, "token", False).leave
