"""What is no record, or no whole one, is refused by every reader in one sentence."""

from __future__ import annotations

import pandas as pd
import pytest
import xarray as xr

import sinkscope
from sinkscope.analysis.reading import reads
from sinkscope.errors import SinkscopeError
from tests.support.synthetic import synthetic_record


class Scoped:
    @property
    def record(self):
        raise AssertionError("nobody asked")


NONE = {
    "nothing": (None, "not a NoneType"),
    "an array": (synthetic_record()["sink_mass"], "give the whole record"),
    "a path": ("report/records/text.nc", "open_record"),
    "a scope": (Scoped(), "give its `record`"),
    "records": ([synthetic_record()], "one of them at a time"),
    "a table": (pd.DataFrame({"a": [1]}), "not a DataFrame"),
}


@pytest.mark.parametrize("given", NONE)
@pytest.mark.parametrize("reader", [sinkscope.sink_rate, sinkscope.mass_by_layer, sinkscope.figures.norms])
def test_what_is_no_record_is_refused_with_advice(reader, given):
    value, words = NONE[given]
    with pytest.raises(SinkscopeError, match=words) as caught:
        reader(value)
    assert f"{reader.__name__} reads a record" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dim", ["sequence", "layer", "head"])
def test_a_record_without_a_text_a_layer_or_a_head_is_refused_by_its_dimension(dim):
    with pytest.raises(SinkscopeError, match=f"holds no {dim}"):
        sinkscope.sink_mass(synthetic_record().isel({dim: slice(0)}))


def test_a_record_of_other_dimensions_is_refused_and_the_cause_is_kept():
    record = synthetic_record()
    with pytest.raises(SinkscopeError, match="sink_mass cannot read this record") as caught:
        sinkscope.sink_mass(record.rename(query="place"))
    assert caught.value.__cause__ is not None
    with pytest.raises(SinkscopeError, match="cannot read this record"):
        sinkscope.importance(record.assign(received=record["received"].astype(object) + 1j))


def test_a_reader_of_tables_takes_them_alone():
    @reads
    def rows(table: pd.DataFrame) -> int:
        return len(table["a"])

    @reads
    def either(table: xr.Dataset | pd.DataFrame) -> int:
        return len(table["a"])

    assert rows(pd.DataFrame({"a": [1, 2]})) == 2 == either(xr.Dataset({"a": ("x", [1, 2])}))
    with pytest.raises(SinkscopeError, match="reads a table, not a Dataset"):
        rows(xr.Dataset())
    with pytest.raises(SinkscopeError, match="reads a record or a table, not a int"):
        either(3)
    with pytest.raises(SinkscopeError, match="cannot read this table"):
        rows(pd.DataFrame({"b": [1]}))


def test_other_arguments_are_checked_before_the_record_is_blamed():
    with pytest.raises(SinkscopeError, match="first='4'"):
        sinkscope.sink_mass(synthetic_record(), "4")


def test_a_record_that_can_be_read_without_an_argument_is_not_blamed_for_it():
    @reads
    def row(record: xr.Dataset, number: int = 0, other: int = 0) -> float:
        return record["a"].values[number] + record["a"].values[other]

    record = xr.Dataset({"a": ("x", [1.0, 2.0])})
    for given, words in (({"number": 5}, "number=5"), ({"other": 7}, "other=7")):
        with pytest.raises(SinkscopeError, match=rf"row can read this record, but not with {words} \(index .*\)"):
            row(record, **given)
    with pytest.raises(SinkscopeError, match="not with number=5 and other=7"):
        row(record, 5, other=7)
    with pytest.raises(SinkscopeError, match=r"row cannot read this record \(No variable named 'a'\..*\): give"):
        row(record.rename(a="b"), 1)
