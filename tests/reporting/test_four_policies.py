"""Costs and perplexities side by side."""

from __future__ import annotations

import pandas as pd
import pytest

from sinkscope.analysis.costs import four_policies
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.tables import latex_text
from sinkscope.streaming.cost import cost_table
from tests.support import zoo
from tests.support.costed import POLICIES


def test_the_four_policies_table_joins_costs_and_perplexities():
    costs = cost_table(zoo.build("llama"), POLICIES, 1000)
    measured = pd.DataFrame({"policy": ["window 6", "dense"], "ppl": [5158.07, 5.4], "low": [5000.0, 5.3],
                             "high": [5300.0, 5.5]})  # fmt: skip
    measured.attrs = {"text": "a book", "tokens": 500}
    table = four_policies(costs, measured)
    assert list(table["policy"]) == list(costs["policy"])
    assert list(table["ppl"].fillna(-1)) == [5.4, 5158.07, -1, -1]
    assert list(table["kv_megabytes"]) == [held / 1e6 for held in costs["kv_bytes"]]
    assert table.attrs["text"] == "a book" and table.attrs["cost_tokens"] == 1000 and table.attrs["tokens"] == 500
    latex = latex_text(table, table.attrs, "Ways to attend", "four-policies")
    for words in (r"\toprule", r"O(T$\cdot$L$^{2}$)", "recompute 6", "5,158", "kv megabytes"):
        assert words in latex
    assert sum(line.endswith(r"\\") for line in latex.splitlines()) == 5
    assert "ppl" not in four_policies(costs)


def test_tables_that_do_not_fit_are_refused():
    costs = cost_table(zoo.build("llama"), POLICIES, 1000)
    measured = pd.DataFrame({"policy": ["window 7"], "ppl": [1.0], "low": [1.0], "high": [1.0]})
    with pytest.raises(SinkscopeError, match="window 7 has a perplexity but no cost"):
        four_policies(costs, measured)
    with pytest.raises(SinkscopeError, match="perplexities has no column ppl"):
        four_policies(costs, measured.drop(columns="ppl"))
    with pytest.raises(SinkscopeError, match="'dense' twice"):
        four_policies(pd.concat([costs, costs[:1]]))
