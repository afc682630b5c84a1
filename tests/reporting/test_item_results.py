"""What items of one's own give: tables with an index, rows and cells that are none, records they write over."""

from __future__ import annotations

import pandas as pd
import pytest

from sinkscope import ITEMS, Item
from sinkscope.reporting.made import plain_table
from tests.reporting.test_items import KURTOSIS, drawn, measured, model, path

__all__ = ["model", "path"]


def grouped(record):
    return record["kurtosis"].mean(["sequence", "token"]).to_dataframe().groupby("layer").mean()


def spread(record):
    return record["kurtosis"].to_dataframe().reset_index().groupby("layer")[["kurtosis"]].agg(["mean", "std"])


def test_what_stands_in_the_index_of_a_table_is_in_its_columns(model, path, tmp_path):
    items = [Item("one", table=grouped), Item("two", table=spread, probes=[KURTOSIS.probes[0]])]
    made = measured(model, path, items=[*ITEMS, *items])
    assert list(made.tables["one"]) == ["layer", "kurtosis"]
    assert list(made.tables["two"]) == ["layer", "kurtosis mean", "kurtosis std"]
    assert made.tables["two"]["layer"].tolist() == [0, 1, 2]
    described = plain_table(pd.DataFrame({"k": [1.0, 2.0]}).describe(), "it")
    assert described["index"].tolist()[:2] == ["count", "mean"]
    chosen = pd.DataFrame({"k": [1.0, 2.0]})
    assert list(plain_table(chosen[chosen["k"] > 1], "it")) == ["k"]


def write_over(record):
    record["kurtosis"].values[:] = 0
    return drawn(record)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"quantity": "q", "value": 1.0, "null": "uniform"}], "have the row"),
        ([{"quantity": "q", "value": 1.0, "lower": "low"}], "have the row"),
        ([{"quantity": "q", "value": None}], "have the row"),
    ],
)
def test_rows_that_are_no_numbers_are_noted_and_the_rest_stands(model, path, tmp_path, rows, message, one_format):
    wrong = Item("wrong", numbers=lambda record: rows)
    right = Item("right", numbers=lambda record: [{"quantity": "r", "value": 2.0, "null": None}])
    cells = Item("cells", table=lambda record: pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}))
    lists = Item("lists", table=lambda record: pd.DataFrame({"many": [[]]}))
    over = Item("over", figure=write_over, probes=[KURTOSIS.probes[0]])
    made = measured(model, path, items=[*ITEMS, wrong, right, cells, lists, over])
    made.save(tmp_path / "out")
    assert made.tables["summary"].set_index("quantity")["value"]["r"] == 2.0
    told = " ".join(made.notes)
    assert message in told and "the table of `cells` has" in told and "the table of `lists` has" in told
    assert "`over` could not be made: it raised ValueError: assignment destination is read-only" in told
    assert float(made.records["text"]["kurtosis"].max()) > 0
