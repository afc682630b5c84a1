"""Attention and its log-sum-exp against a plain softmax in float64."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkscope.attention.attend as attend_module
from sinkscope import SinkscopeError, attend, merge
from sinkscope.attention.masks import CausalMask, FullMask, IndexedMask, TensorMask, weights_of


def plain(query, key, value, visible, scale, softcap=None):
    """Softmax attention of the textbook, in float64."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1).double(), value.repeat_interleave(group, 1).double()
    scores = query.double() @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def states(queries, keys, heads=4, kv_heads=2, dim=16, value_dim=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, value_dim))
    return [torch.randn(2, *shape, generator=generator).to(dtype) for shape in shapes]


def causal(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 70), past=st.integers(0, 50), group=st.integers(1, 3),
    value_dim=st.sampled_from([8, 16, 24]), softcap=st.sampled_from([None, 5.0]),
    rows=st.sampled_from([1, 7, 256]), entries=st.sampled_from([200, 1 << 22]),
)  # fmt: skip
def test_causal_attention_equals_plain_softmax(queries, past, group, value_dim, softcap, rows, entries):
    query, key, value = states(queries, queries + past, heads=2 * group, value_dim=value_dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend_module, "FUSED_ROWS", rows)
        patch.setattr(attend_module, "BLOCK_ENTRIES", entries)
        output, lse = attend(query, key, value, scale=0.3, softcap=softcap)
    expected, expected_lse = plain(query, key, value, causal(queries, queries + past), 0.3, softcap)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("window", [1, 3, 16, 1000])
def test_sliding_window_and_padding_as_an_index_function(monkeypatch, fused, window):
    monkeypatch.setattr(attend_module, "FUSED_ROWS", 8)
    if not fused:
        monkeypatch.setattr(attend_module, "fused_kernel", lambda *_: None)
    query, key, value = states(40, 40)
    padding = torch.ones(2, 40, dtype=torch.bool)
    padding[0, :9] = False
    indices = torch.arange(40)

    def seen(batch, head, row, column):
        return (column <= row) & (column > row - window) & padding[batch, column]

    mask = IndexedMask(seen, torch.arange(2), indices, indices)
    output, lse = attend(query, key, value, mask)
    band = causal(40, 40) & ~causal(40, 40).tril(-window)
    visible = band & padding[:, None, None, :]
    expected, expected_lse = plain(query, key, value, visible, 16**-0.5)
    some = visible.any(-1).expand(2, 4, 40)
    torch.testing.assert_close(output[some].double(), expected[some], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse[some].double(), expected_lse[some], atol=2e-6, rtol=1e-5)
    assert (lse[~some] < -1e37).all()  # nothing to see


def test_tensor_masks_boolean_and_additive():
    query, key, value = states(12, 20)
    bias = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(1))
    hidden = ~causal(12, 20)
    for mask, extra in (
        (TensorMask(~hidden[None, None]), torch.zeros(())),
        (TensorMask(bias.masked_fill(hidden, -torch.inf)), bias),
        (TensorMask(bias.masked_fill(hidden, torch.finfo(torch.float32).min)), bias),
    ):
        output, lse = attend(query, key, value, mask, scale=0.2)
        scores = query.double() @ key.repeat_interleave(2, 1).double().transpose(-1, -2) * 0.2 + extra
        scores = scores.masked_fill(hidden, -torch.inf)
        torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=2e-6, rtol=1e-5)
        expected = scores.softmax(-1) @ value.repeat_interleave(2, 1).double()
        torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=5, unique=True))
def test_merging_disjoint_keys_is_attention_over_all_of_them(cuts):
    query, key, value = states(9, 60)
    edges = [0, *sorted(cuts), 60]
    parts = [attend(query, key[:, :, a:b], value[:, :, a:b], FullMask()) for a, b in pairwise(edges)]
    output, lse = merge(*parts)
    expected, expected_lse = plain(query, key, value, torch.ones(9, 60, dtype=torch.bool), 16**-0.5)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("keys", [30, 45])
def test_gradients_of_output_and_lse_equal_those_of_plain_softmax(monkeypatch, softcap, keys):
    monkeypatch.setattr(attend_module, "BLOCK_ENTRIES", 2000)
    found, expected = ([t.requires_grad_() for t in states(30, keys)] for _ in range(2))
    output, lse = attend(*found, scale=0.3, softcap=softcap)
    plain_output, plain_lse = plain(*expected, causal(30, keys), 0.3, softcap)
    (output.square().sum() + lse.sin().sum()).backward()
    (plain_output.square().sum() + plain_lse.sin().sum()).backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), "1", True, [1.0]])
def test_a_scale_or_a_softcap_that_is_not_above_zero_is_refused(name, value):
    state = torch.randn(1, 2, 6, 4)
    with pytest.raises(SinkscopeError, match=f"^{name}=.* is not a finite number above 0"):
        attend(state, state, state, **{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.long(), "^key=.* is no tensor of real numbers"),
        (lambda it: it.numpy(), "^key=.* is no tensor of real numbers"),
        (lambda it: it.to("meta"), "^key=.* is no tensor of real numbers"),
        (lambda it: it.half(), "one dtype and on one device"),
        (lambda it: it[:, :0], "have shapes"),
        (lambda it: it[:, :, :0], "have shapes"),
    ],
)
def test_states_that_no_kernel_could_read_are_refused(change, message):
    state = torch.randn(1, 2, 6, 4)
    with pytest.raises(SinkscopeError, match=message):
        attend(state, change(state), state)
    with pytest.raises(SinkscopeError, match="is no mask"):
        attend(state, state, state, torch.ones(6, 6))


def test_what_cannot_be_merged_is_refused():
    output, lse = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6)
    for part in (output, (output,), (lse, output), 3, None):
        with pytest.raises(SinkscopeError, match="a part to merge is"):
            merge((output, lse), part)
    with pytest.raises(SinkscopeError, match="different shapes"):
        merge((output, lse), (output[:, :, :3], lse[:, :, :3]))
    with pytest.raises(SinkscopeError, match="has no lse of shape"):
        merge((output, lse[:, :, :3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_one_query_in_half_precision_is_what_it_is_among_others(dtype, kv_heads):
    query, key, value = states(50, 50, kv_heads=kv_heads, dtype=dtype)
    padding = torch.ones(2, 50, dtype=torch.bool)
    padding[0, :7] = False
    for seen in (None, padding):
        visible = torch.ones(2, 1, 1, 50, dtype=torch.bool) if seen is None else seen[:, None, None]
        mask = None if seen is None else TensorMask(visible)
        output, lse = attend(query[:, :, -1:], key, value, mask)
        expected, expected_lse = plain(query[:, :, -1:], key, value, visible, 16**-0.5)
        assert output.shape == (2, 4, 1, 16) and lse.shape == (2, 4, 1)
        torch.testing.assert_close(lse.double(), expected_lse, atol=5e-4, rtol=0)
        torch.testing.assert_close(output.double(), expected, atol=8 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_lse(dtype):
    query, key, value = states(33, 50, dtype=dtype)
    output, lse = attend(query, key, value)
    _, expected = plain(query, key, value, causal(33, 50), 16**-0.5)
    assert output.dtype == dtype and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=1e-5)  # bfloat16 keeps 3 digits


def test_a_static_cache_with_room_left_changes_nothing():
    query, key, value = states(6, 20)
    room = torch.randn(2, 2, 11, 16)
    output, lse = attend(query, torch.cat([key, room], 2), torch.cat([value, room], 2), CausalMask(14))
    expected, expected_lse = attend(query, key, value)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_a_kernel_that_is_wrong_or_missing_is_left_out_with_one_warning(monkeypatch):
    def wrong(query, *rest):
        output, lse = attend_module._flash_cpu(query, *rest)
        return output, lse + 1e-3

    def missing(*_):
        raise AttributeError("no such operator")

    for broken in (wrong, missing):
        monkeypatch.setitem(attend_module.KERNELS, "cpu", broken)
        attend_module.fused_kernel.cache_clear()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            query, key, value = states(20, 20)
            for _ in range(2):
                output, lse = attend(query, key, value)
        assert len(seen) == 1 and "blockwise" in str(seen[0].message)
        expected, expected_lse = plain(query, key, value, causal(20, 20), 16**-0.5)
        np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
        np.testing.assert_allclose(output, expected, atol=1e-5)
    monkeypatch.undo()
    attend_module.fused_kernel.cache_clear()
    assert attend_module.fused_kernel("cpu", torch.float32) is attend_module._flash_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strided", [False, True])
def test_weights_are_the_exp_of_their_logarithms_and_exactly_zero_below_the_normal_floats(dtype, strided):
    lowest, edge = torch.finfo(dtype).min, math.log(torch.finfo(dtype).tiny)
    given = [0.0, -1e-7, -1.5, -30.0, edge + 1, edge, edge - 3, 2 * edge, lowest, -math.inf]
    logs = torch.tensor(given * 7, dtype=dtype)  # as many as vector instructions and their rest take
    out = torch.full((2, len(logs) + 5), 7.0, dtype=dtype)[1, 3:-2] if strided else None
    weights = weights_of(logs, out)
    exact = logs.double().numpy().astype(np.longdouble)
    expected, normal = np.exp(exact), exact > edge + 0.5
    np.testing.assert_allclose(weights[normal], expected[normal].astype(float), rtol=8 * torch.finfo(dtype).eps)
    assert not weights[~normal].any()
    assert logs.tolist() == torch.tensor(given * 7, dtype=dtype).tolist()


def test_weights_hand_on_what_is_no_number_and_gradients():
    assert weights_of(torch.tensor([math.nan, 0.0]))[0].isnan()
    logs = torch.tensor([-1.0, -200.0], requires_grad=True)
    (slope,) = torch.autograd.grad(weights_of(logs).sum(), logs)
    assert slope.tolist() == pytest.approx([math.exp(-1), 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", [1e39, 1e300, 1e-300])
def test_a_factor_that_float32_does_not_hold_is_refused_in_every_dtype(dtype, name, value):
    states = [torch.randn(1, 2, 6, 8).to(dtype) for _ in range(3)]
    with pytest.raises(SinkscopeError, match=f"{name}=.* is none that float32 holds"):
        attend(*states, **{name: value})
    output, lse = attend(*states, **{name: 1e30})
    assert bool(output.isfinite().all()) and bool(lse.isfinite().all())
