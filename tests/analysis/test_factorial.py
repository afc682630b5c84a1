"""The collapse as a two-by-two design, against its formulas and Shapley's definition."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sinkscope.analysis.factorial import CELLS, factorial_table
from sinkscope.analysis.perplexity import collapse_table
from sinkscope.errors import SinkscopeError
from tests.support import experiments


def shares() -> dict[str, float]:
    table = factorial_table(experiments.collapse())
    return dict(zip(table["effect"], table["share"], strict=True))


def test_first_shares_are_what_the_parts_recover_and_both_orders_add_up_to_one():
    found, recovered = shares(), collapse_table(experiments.collapse()).set_index("part")["recovered"]
    assert found["denominator, first"] == pytest.approx(recovered["phantom, values zeroed"])
    assert found["value, first"] == pytest.approx(recovered["values only"])
    for one, other in (("denominator", "value"), ("value", "denominator")):
        assert found[f"{one}, first"] + found[f"{other}, after the {one}"] == pytest.approx(1)
    assert found["interaction"] == pytest.approx(1 - found["denominator, first"] - found["value, first"])


def test_shapleys_shares_are_the_mean_over_the_orders_in_which_halves_come():
    recovered = collapse_table(experiments.collapse()).set_index("part")["recovered"]
    worth = {frozenset(): 0.0, frozenset("d"): recovered["phantom, values zeroed"],
             frozenset("v"): recovered["values only"], frozenset("dv"): 1.0}  # fmt: skip
    for half, name in (("d", "denominator"), ("v", "value")):
        gains = [worth[frozenset(order[: order.index(half) + 1])] - worth[frozenset(order[: order.index(half)])]
                 for order in permutations("dv")]  # fmt: skip
        assert shares()[f"{name}, Shapley"] == pytest.approx(np.mean(gains))


def test_bounds_enclose_the_shares_and_are_those_of_the_parts():
    table = factorial_table(experiments.collapse()).set_index("effect")
    assert (table["low"] < table["share"]).all() and (table["share"] < table["high"]).all()
    parts = collapse_table(experiments.collapse()).set_index("part")
    for effect, part in (("denominator, first", "phantom, values zeroed"), ("value, first", "values only")):
        expected = parts.loc[part, ["recovered_low", "recovered_high"]].astype(float)
        np.testing.assert_allclose(table.loc[effect, ["low", "high"]].astype(float), expected)
    assert table.attrs["over"] == "batches" and "8 batches" in table.attrs["bounds"]


def test_without_a_gap_or_a_half_nothing_is_divided():
    assert factorial_table(experiments.collapse(lost=(0.0,) * 5))[["share", "low", "high"]].isna().all(axis=None)
    with pytest.raises(SinkscopeError, match=r"no policy that is values only: make one with sinkscope\.decompose"):
        factorial_table(experiments.collapse().isel(policy=[0, 1, 2, 4]))
    assert CELLS[0] == "full sinks" and CELLS[-1] == "window"
