"""Keys in chunks against all keys at once, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope import SinkscopeError, attend_split
from tests.core.test_attend import plain, states


@settings(max_examples=30, deadline=None)
@given(queries=st.integers(1, 4), keys=st.integers(1, 90), chunk=st.integers(1, 40), value_dim=st.sampled_from([8, 16]))
def test_chunks_equal_plain_softmax(queries, keys, chunk, value_dim):
    query, key, value = states(queries, keys, value_dim=value_dim)
    output, lse = attend_split(query, key, value, chunk=chunk, scale=0.3)
    expected, expected_lse = plain(query, key, value, torch.ones(queries, keys, dtype=torch.bool), 0.3)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-6, rtol=1e-5)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(SinkscopeError, match="chunk=0"):
        attend_split(*states(1, 8), chunk=0)
