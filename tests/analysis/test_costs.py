"""What policies cost, as tables and beside their losses, through a file too."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sinkscope.analysis.costs import costs_of, timing_table, with_costs
from sinkscope.errors import SinkscopeError
from sinkscope.record import open_record, save_record
from tests.support import naive_streaming
from tests.support.loss_records import collapsing


def test_timings_are_a_table_also_from_a_file(tmp_path):
    table, record = naive_streaming.decode(), naive_streaming.decode_record()
    for found in (record, open_record(save_record(record, tmp_path / "timing.nc"))):
        back = timing_table(found)
        pd.testing.assert_frame_equal(back, table)
        assert back.attrs == table.attrs


def test_costs_join_the_losses_of_the_same_policies_in_any_order(tmp_path):
    costs = naive_streaming.costs()
    curve = with_costs(collapsing(), costs.iloc[::-1])
    for found in (curve, open_record(save_record(curve, tmp_path / "curve.nc"))):
        back = costs_of(found)
        pd.testing.assert_frame_equal(back[list(costs.columns)], costs)
        assert back.attrs["tokens"] == 640 and back.attrs["model"] == "some/model"
    np.testing.assert_array_equal(curve["nll"], collapsing()["nll"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(SinkscopeError, match="give both the same"):
        with_costs(collapsing(), naive_streaming.costs().iloc[:2])
    with pytest.raises(SinkscopeError, match="cost_columns is missing"):
        costs_of(collapsing())
    with pytest.raises(SinkscopeError, match="samples is missing"):
        timing_table(naive_streaming.decode_record().drop_vars("samples"))
