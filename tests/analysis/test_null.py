from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkscope.analysis.mass import uniform_importance, uniform_mass
from sinkscope.errors import SinkscopeError
from tests.analysis import naive


def test_null_of_the_first_key_is_the_published_harmonic_number():
    assert uniform_importance(64) == pytest.approx(naive.harmonic(64) / 64, rel=1e-12)
    assert uniform_importance(64) == pytest.approx(0.074, abs=5e-4)
    assert uniform_importance(64) != pytest.approx(1 / 64, rel=0.5)


@pytest.mark.slow
@given(length=st.integers(1, 40), causal=st.booleans(), data=st.data())
def test_nulls_are_the_metrics_of_a_uniform_matrix(length, causal, data):
    position = data.draw(st.integers(0, length - 1))
    matrix = naive.uniform_matrix(length, causal)
    want = naive.alpha(matrix, position, causal)
    assert uniform_importance(length, position, causal) == pytest.approx(want, rel=1e-12)
    if length > 1:
        first = data.draw(st.integers(1, length - 1))
        want = naive.sink_mass([[[matrix]]], 0, 0, first)
        assert uniform_mass(length, first, causal) == pytest.approx(want, rel=1e-12)
        shares = [min(first, i + 1) / (i + 1) for i in range(first, length)]
        if causal:
            assert want == pytest.approx(sum(shares) / len(shares), rel=1e-12)


def test_a_local_head_gives_a_key_three_and_a_half_nulls_at_three_quarters_of_the_text():
    length = 4096
    one_query_of_attention = 1 / (length / 4)
    times = one_query_of_attention / uniform_importance(length, position=length * 3 // 4)
    assert times == pytest.approx(1 / math.log(4 / 3), rel=1e-3)


@pytest.mark.parametrize("call", [
    lambda: uniform_importance(0),
    lambda: uniform_importance(8, position=8),
    lambda: uniform_importance(8, position=-1),
    lambda: uniform_importance(8.5),
    lambda: uniform_mass(8, first=0),
    lambda: uniform_mass(8, first=8),
])  # fmt: skip
def test_nulls_that_do_not_exist_are_refused(call):
    with pytest.raises(SinkscopeError):
        call()
