"""Every public name has an example in its docstring, and the examples are true.

`model`, `tokenizer`, `ids` [2, 40] and `record` are there: a tiny model, and the record that a reader reads.
"""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import figures, lab
from sinkscope.figures import marks
from tests.fuzz import ordinary, world

NAMESPACES = {"": sinkscope, "figures.": figures, "lab.": lab}
PUBLIC = {f"{prefix}{name}": getattr(home, name) for prefix, home in NAMESPACES.items() for name in home.__all__}
NAMED = {name: each for name, each in PUBLIC.items() if callable(each) or isinstance(each, ModuleType)}
CONSTANTS = {"__version__", "ALL", "FREE", "ITEMS", "SECTIONS", "lab.ARMS"}  # which have no docstring


def examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(NAMED[name]) or "", name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files and folders by the names that examples give them."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "path/to").mkdir(parents=True)
    (folder / "path/to/model").symlink_to(world.saved_model())
    (folder / "run").symlink_to(world.run_folder())
    (folder / "book.txt").write_text(world.PROSE, encoding="utf-8")
    (folder / "table.csv").write_text("policy,cache\ndense,8\n", encoding="utf-8")
    for each in ("one", "two"):
        sinkscope.Report(world.record("measured"), items=sinkscope.ITEMS[:1]).save(folder / each, progress=False)
    return folder


def test_whatever_has_a_docstring_has_an_example():
    assert PUBLIC.keys() - NAMED.keys() == CONSTANTS
    assert [name for name in NAMED if not examples(name)] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMED)
def test_an_example_is_true(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    record = world.record(ordinary.READS.get(name, "measured"))
    query, key, value = torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    names = dict(
        sinkscope=sinkscope, figures=figures, lab=lab, marks=marks, torch=torch, np=np, model=world.model(),
        tokenizer=world.tokenizer(), ids=world.ids(), record=record, table=record, query=query, key=key, value=value,
    )  # fmt: skip
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    runner.run(doctest.DocTest(examples(name), names, name, None, None, None), out=told.append)
    assert runner.failures == 0, "".join(told)
    assert not world.model().training and not [each for each in world.model().modules() if each._forward_pre_hooks]


def test_an_example_that_is_false_is_told():
    case = doctest.DocTestParser().get_doctest(">>> sinkscope.uniform_mass(8)\n0.5\n", vars(), "false", None, None)
    case.globs["sinkscope"] = sinkscope
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(case, out=lambda _: None)
    assert runner.failures == 1
