"""A policy is reported as what it does, whatever it is called."""

from __future__ import annotations

import pytest

from sinkscope import SinkWindow, Window, collapse_table, decompose, open_record, perplexity, save_record
from sinkscope.analysis.perplexity import PARTS, is_decomposed


@pytest.mark.slow
def test_a_relabelled_phantom_is_reported_as_a_phantom(model, ids, tmp_path):
    full, window = SinkWindow(4, 12, label="window 16"), Window(16, label="sinks 4+12")
    phantom = SinkWindow(4, 12, values="zeroed", label="phantom sinks")
    record = perplexity(model, ids, [phantom, window, full], progress=False)
    record = open_record(save_record(record, tmp_path / "perplexity.nc"))
    assert is_decomposed(record)
    table = collapse_table(record, resamples=50)
    assert table[["part", "policy"]].values.tolist() == [
        ["full sinks", "window 16"], ["phantom, values zeroed", "phantom sinks"], ["window", "sinks 4+12"],
    ]  # fmt: skip
    expected = collapse_table(decompose(model, ids, 16, progress=False), resamples=50).set_index("part")
    assert table["ppl"].tolist() == expected.loc[table["part"], "ppl"].tolist()
    assert list(expected.index) == list(PARTS)
    assert not is_decomposed(perplexity(model, ids, [phantom, window], progress=False))
