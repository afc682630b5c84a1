"""Arguments at the border: of the types that a signature names, in messages of one line, and never too many."""

from __future__ import annotations

import inspect
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sinkscope.arguments import MOST, checks_types, is_whole, several, whole_number
from sinkscope.errors import LONGEST, SinkscopeError, shown


@checks_types
def takes(
    count: int = 1,
    share: float | None = None,
    is_on: bool = False,
    path: str | os.PathLike[str] = "a",
    ids: torch.Tensor | None = None,
    record: xr.Dataset | None = None,
    table: pd.DataFrame | None = None,
    other: list[int] | None = None,
    **attributes: int,
) -> int:
    """Something that takes all that is checked."""
    return count


GOOD = {
    "count": [1, -3, np.int64(2), 2**63 - 1],
    "share": [None, 1, 0.5, float("nan"), np.float32(1)],
    "is_on": [True, False, np.True_, 0, 1],
    "path": ["a", __file__, os.fspath("b")],
    "ids": [None, torch.zeros(2)],
    "record": [None, xr.Dataset()],
    "table": [None, pd.DataFrame()],
    "other": ["what is not checked here"],
    "note": ["nor what goes by any name"],
}
BAD = {
    "count": [None, 1.0, True, "1", 2**63, 10**30, np.zeros(3), torch.tensor(1), []],
    "share": ["0.5", True, 1j, [0.5], np.zeros(1)],
    "is_on": [None, 2, "True", 1.0],
    "path": [None, 1, b"a", ["a"], "a\0b", "\ud800"],
    "ids": [[1, 2], np.zeros(2)],
    "record": [xr.DataArray(1), {}, pd.DataFrame()],
    "table": [xr.Dataset(), {}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_a_signature_names_is_taken(name, value):
    assert takes(**{name: value}) == (value if name == "count" else 1)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_it_does_not_name_is_refused_in_one_line_with_the_name(name, value):
    with pytest.raises(SinkscopeError, match=f"^{name}=") as caught:
        takes(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_checked_function_looks_as_before_and_misses_arguments_as_python_does():
    assert next(iter(inspect.signature(takes).parameters)) == "count" and takes.__doc__ is not None
    with pytest.raises(TypeError, match="too many positional"):
        takes(1, None, False, "a", None, None, None, None, 9)


def test_a_message_is_one_line_of_bounded_length_and_survives_a_process():
    error = SinkscopeError("first\nsecond " + "x" * 5000 + " end.")
    assert len(str(error)) <= LONGEST + 5 and "\n" not in str(error)
    assert str(error).startswith("first second") and str(error).endswith("end.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(SinkscopeError("a short one.")) == "a short one."


def test_any_value_can_be_shown():
    class Silent:
        def __repr__(self):
            raise RuntimeError

    assert shown(Silent()) == "<Silent>" and shown(10**5000) == "<int>"
    assert shown([1, 2]) == "[1, 2]" and shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 5000)) < 100 and "\n" not in shown(torch.zeros(100, 100))


def test_several_stops_where_nobody_has_that_many():
    assert several(5, "n") == [5] and several("ab", "n") == ["ab"] and several((1, 2), "n") == [1, 2]
    with pytest.raises(SinkscopeError, match=f"more than {MOST:,}"):
        several(range(10**12), "n")


def test_whole_numbers_are_those_that_a_file_holds():
    assert is_whole(np.int8(3)) and not is_whole(True) and not is_whole(3.0) and not is_whole(2**63)
    with pytest.raises(SinkscopeError, match="is more than"):
        whole_number(10**30, "seed", 0)
    with pytest.raises(SinkscopeError, match="give one"):
        whole_number(float("nan"), "seed", 0)
