"""Every command with words of any kind: a success, or one line and exit code 2. `make fuzz` tries more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz import world
from tests.fuzz.commands import commands, examine, ordinary
from tests.fuzz.trying import OK, UNCLEAR

EXAMPLES = {name: 6 for name in commands()} | {"report": 1}
"""A report that goes well takes many seconds."""


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_whatever_is_asked_for_it_works_or_says_in_a_line_why_not(name):
    ordinary_case, *others = examine(name, EXAMPLES[name])
    assert ordinary_case.verdict == OK or name == "audit", ordinary_case.said
    assert [f"{each.case}: {each.said}" for each in others if each.verdict == UNCLEAR] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cost", ["--tokens", "9" * 30]),
        ("perplexity", ["--text", "\udcff"]),
        ("report", ["--out", "/dev/null"]),
    ],
)
def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path, name, words):
    line = [sys.executable, "-m", "sinkscope.cli", name, *ordinary(tmp_path)[name], *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("sinkscope: ") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert world.saved_model().is_dir()
