"""The mask of a model under a scope: a tensor like that of eager attention, whose numbers are made when asked for."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from transformers.masking_utils import eager_mask, sliding_window_causal_mask_function

from sinkscope.attention.attend import attend
from sinkscope.attention.masks import BandMask, BiasedMask, CausalMask, ChosenMask, FullMask, TensorMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import AttentionCall, MaskRequest
from sinkscope.scope.interface import scoped_attention
from sinkscope.scope.lazy_mask import LazyMask, lazy_mask

QUERIES, PAST, KEYS = 6, 5, 11
PADDING = torch.ones(2, KEYS, dtype=torch.bool)
PADDING[0, :3] = False


def made(window: int | None = 4, padding: torch.Tensor | None = PADDING) -> LazyMask:
    function = sliding_window_causal_mask_function(window) if window else None
    return lazy_mask(
        MaskRequest(
            batch=2, queries=QUERIES, keys=KEYS, start=PAST, key_start=0, function=function, padding=padding,
            window=window, causal=True, bidirectional=False, scalar=False, dtype=torch.float32, device="cpu",
        )
    )  # fmt: skip


def states(queries: int = QUERIES, keys: int = KEYS):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, heads, count, 8, generator=generator) for heads, count in ((4, queries), (2, keys), (2, keys))
    )


def called(mask, *, bias=None, chosen=None, causal=True, queries=QUERIES, keys=KEYS) -> AttentionCall:
    return AttentionCall(
        nn.Identity(), *states(queries, keys), mask, bias, chosen, scale=0.3, dropout=0.0, softcap=None,
        learned_sinks=None, causal=causal, foreign=(),
    )  # fmt: skip


def by_hand(call: AttentionCall, added: torch.Tensor) -> torch.Tensor:
    """The output in float64, of scores with numbers added to them."""
    query, key, value = call.query.double(), *(each.double().repeat_interleave(2, 1) for each in (call.key, call.value))
    return (query @ key.mT * 0.3 + added.double()).softmax(-1) @ value


def test_numbers_are_those_of_eager_attention():
    expected = eager_mask(
        2, QUERIES, KEYS, PAST, 0, sliding_window_causal_mask_function(4), PADDING, torch.float32, local_size=4
    )
    torch.testing.assert_close(made() + 0, expected)


def test_no_numbers_are_made_for_what_needs_none():
    mask = made()
    assert mask.shape == (2, 1, QUERIES, KEYS) and mask.dim() == mask.ndim == 4 and mask.size(-1) == KEYS
    assert mask.dtype == torch.float32 and mask.device.type == "cpu" and isinstance(mask, torch.Tensor)
    assert mask.to("cpu") is mask and mask.contiguous() is mask
    scoped_attention(called(mask))
    assert mask._made is None


def test_what_layers_make_of_a_mask_is_what_they_attend_under():
    mask, hidden = made(), torch.finfo(torch.float32).min
    further = torch.rand(2, 1, QUERIES, KEYS, generator=torch.Generator().manual_seed(1)) < 0.3
    further[..., PAST:] = False  # every query sees itself
    numbers = mask + 0
    for given in (
        mask.masked_fill(further, hidden),
        (mask == 0) & ~further,
        torch.where(further, hidden, mask),
        mask[:, :, :, :KEYS].masked_fill(further, hidden).clone(),
    ):
        call = called(given)
        output, layer = scoped_attention(call)
        torch.testing.assert_close(
            output.double(), by_hand(call, numbers.masked_fill(further, hidden)), atol=1e-6, rtol=0
        )
        assert layer.start == PAST
    assert type(given) is torch.Tensor


def test_what_is_written_into_a_mask_counts():
    for write in (
        lambda mask: mask.masked_fill_(torch.arange(KEYS) < PAST, -1e30),
        lambda mask: mask[..., :PAST].fill_(-1e30),
    ):
        mask = made()
        expected = (mask + 0).masked_fill(torch.arange(KEYS) < PAST, -1e30)
        write(mask)
        call = called(mask)
        torch.testing.assert_close(scoped_attention(call)[0].double(), by_hand(call, expected), atol=1e-6, rtol=0)


def test_gradients_reach_what_was_made_of_a_mask():
    weights = torch.randn(2, 4, QUERIES, KEYS, requires_grad=True)
    call = called(weights.masked_fill(made() != 0, torch.finfo(torch.float32).min))
    scoped_attention(call._replace(query=call.query.requires_grad_()))[0].square().sum().backward()
    ours, weights.grad = weights.grad, None
    by_hand(call, weights.masked_fill((made() + 0) != 0, -1e30)).square().sum().backward()
    torch.testing.assert_close(ours, weights.grad, atol=1e-5, rtol=0)


def test_a_mask_of_more_or_fewer_keys_is_refused():
    for keys in (KEYS - 1, KEYS + 2):
        with pytest.raises(SinkscopeError, match=f"attends to {keys} keys .* covers {KEYS}"):
            scoped_attention(called(made(), keys=keys))
        with pytest.raises(SinkscopeError, match=f"attends to {keys} keys .* covers {KEYS}"):
            scoped_attention(called(torch.zeros(2, 1, QUERIES, KEYS), keys=keys))
    with pytest.raises(SinkscopeError, match="there is no mask"):
        scoped_attention(called(None))


def test_keys_that_are_no_tokens_take_their_share_behind_the_tokens():
    mask, extra = made(None, None), torch.zeros(2, 1, QUERIES, 3)
    call = called(torch.cat([mask, extra], -1), keys=KEYS + 3)
    output, layer = scoped_attention(call)
    torch.testing.assert_close(output.double(), by_hand(call, torch.cat([mask + 0, extra], -1)), atol=1e-6, rtol=0)
    assert (layer.others, layer.key.shape[2], layer.start) == (3, KEYS, PAST)
    with pytest.raises(SinkscopeError, match="do not come behind"):
        scoped_attention(called(torch.cat([extra, mask], -1), keys=KEYS + 3))


def test_a_bias_and_a_choice_of_keys_hold_beside_the_mask():
    bias = torch.randn(2, 4, QUERIES, KEYS, generator=torch.Generator().manual_seed(2))
    chosen = torch.arange(PAST, PAST + QUERIES)[:, None] - torch.tensor([0, 2])
    added = made() + bias
    for given in ({"bias": bias}, {"bias": bias, "chosen": chosen.expand(2, -1, -1)}):
        if "chosen" in given:
            seen = torch.zeros(QUERIES, KEYS, dtype=torch.bool).scatter(-1, chosen, True)
            added = added.masked_fill(~seen, torch.finfo(torch.float32).min)
        call = called(made(), **given)
        output, layer = scoped_attention(call)
        torch.testing.assert_close(output.double(), by_hand(call, added), atol=1e-6, rtol=0)
        sums = sum(tile.probabilities.sum(-1)[:, :1] for tile in layer.tiles() if tile.heads.start == 0)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


PLACES = [  # some queries and keys: scattered, next to each other, without the keys of the queries themselves
    (torch.tensor([1, 2, 5]), torch.tensor([0, 2, 3, 7, 10])),
    (torch.arange(1, QUERIES), torch.arange(KEYS)),
    (torch.arange(2, 5), torch.arange(3, KEYS)),
    (torch.arange(0, 2), torch.arange(KEYS - 3, KEYS)),
    (torch.arange(2, 4), torch.arange(0, 3)),
]


def test_parts_of_a_mask_hide_what_the_whole_does():
    bias = torch.randn(2, 4, QUERIES, KEYS, generator=torch.Generator().manual_seed(3))
    chosen = torch.randint(-1, KEYS, (2, QUERIES, 4), generator=torch.Generator().manual_seed(4))
    for mask in (
        CausalMask(PAST),
        BandMask(PAST, 2),
        BiasedMask(CausalMask(PAST), bias),
        ChosenMask(CausalMask(PAST), chosen),
        BiasedMask(ChosenMask(FullMask(), chosen), bias),
        BiasedMask(TensorMask(bias > 0), bias[:, :1]),
    ):
        whole = torch.zeros(2, 4, QUERIES, KEYS)
        mask.hide(whole, slice(0, QUERIES), slice(0, KEYS))
        count = (whole > -1e4).sum(-1).expand(2, 4, -1)
        assert torch.equal(mask.seen(slice(0, QUERIES), KEYS).expand(2, 4, -1), count)
        block = torch.zeros(2, 4, 3, 4)
        mask.hide(block, slice(2, 5), slice(4, 8))
        torch.testing.assert_close(block, whole[:, :, 2:5, 4:8])
        for head, (rows, columns) in product((None, 2), PLACES):
            size = (len(rows), len(columns))
            part = torch.zeros(1, 4 if head is None else 1, *size)
            own = mask.restricted(1, rows, columns, head)
            own.hide(part, *map(partial(slice, 0), size))
            expected = whole[1:, slice(None) if head is None else slice(head, head + 1)][:, :, rows][..., columns]
            torch.testing.assert_close(part, expected)
            near, seen = own.columns(slice(0, 2), size[1]), (expected[:, :, :2] > -1e4).flatten(0, 2).any(0).nonzero()
            assert len(seen) == 0 or near.start <= int(seen[0]) <= int(seen[-1]) < near.stop
            assert torch.equal(own.seen(slice(0, size[0]), size[1]).expand(part.shape[:3]), (expected > -1e4).sum(-1))


def test_kernels_get_vectors_whose_numbers_follow_each_other():
    """Short convolutions hand over values with the tokens innermost; the fused kernels read such tensors wrongly."""
    query, key, value = (each.mT.contiguous().mT for each in states(KEYS))
    assert value.stride(-1) != 1
    hidden = torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1)
    scores = query.double() @ key.double().repeat_interleave(2, 1).mT * 0.3
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value.double().repeat_interleave(2, 1)
    for mask in (CausalMask(0), TensorMask(~hidden[None, None])):
        output, _ = attend(query, key, value, mask, scale=0.3)
        torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=0)
