"""Numbers of the pages on tasks and precision, read from what their benchmarks kept."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from scipy import stats

import sinkscope
from tests.test_kept_numbers import ROOT, record, words_of

TASKS = words_of("docs/tasks.md")
NAMES = {"dense": "dense", "TOVA 128": "TOVA", "sinks 4+124": "sinks + window", "window 128": "window"}


def interval(row: pd.Series, name: str) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*row[[name, f"{name}_low", f"{name}_high"]]).replace("-", "−")


def test_what_a_first_reading_gave_is_that_of_the_losses():
    found = record("recall")
    table = sinkscope.recall_table(found).query("distance == 256").set_index("policy")
    assert found.sizes["passage"] == 4 and found.attrs["passage_tokens"] == 32 and set(table.index) == set(NAMES)
    for policy, name in NAMES.items():
        cells = (interval(table.loc[policy], each) for each in ("gain", "recalled", "context"))
        assert f"| {name} | {' | '.join(cells)} |" in TASKS


@pytest.mark.slow
def test_the_needles_found_are_those_of_the_answers():
    table = sinkscope.accuracy_table(record("needles")).set_index(["policy", "distance"])
    assert set(table["trials"]) == {6} and (table["chance"].round(2) == 0.03).all()
    far, near = sorted(table.index.unique("distance"), reverse=True)[:2]
    found = (table["accuracy"].xs(far, level="distance") * 6).round().astype(int)
    assert f"a needle {far:.0f} tokens back is found in {found['dense']} of 6 texts with a dense cache" in TASKS
    assert f"in {found['H2O 64+64']} with H2O, in {found['TOVA 128']} with TOVA, and in none with a window" in TASKS
    assert not found[["window 128", "recompute 128", "sinks 4+124"]].any()
    assert f"one {near:.0f} tokens back is found in all six under every one" in TASKS
    assert (table["accuracy"].xs(near, level="distance") == 1).all()
    low, high = (100 * each for each in stats.binomtest(3, 6).proportion_ci(method="exact"))
    assert f"the interval of 3 of 6 is {low:.0f}% to {high:.0f}%" in TASKS
    none = 100 * stats.binomtest(0, 6).proportion_ci(method="exact").high
    assert f"that of 0 of 6 is 0% to {none:.0f}%" in TASKS


def test_the_table_of_precision_is_that_of_its_benchmark():
    said = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    kept = pd.read_csv(ROOT / "assets" / "precision.csv", dtype=str)
    assert len(kept) == 11
    for name, *numbers in kept.replace("0.0e+00", "0").itertuples(index=False):
        name = "float32 (tied head)" if name == "float32" else name
        assert re.search(rf"^\| {re.escape(' | '.join([name, *numbers]))} \|$", said, re.MULTILINE)
