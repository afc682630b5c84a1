"""perplexity with the other slots filled: read in blocks against one forward pass, and against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sinkscope
from sinkscope import (
    ClippedSoftmax,
    Dense,
    Dose,
    Evict,
    EvictRecent,
    LearnedSink,
    Recompute,
    Sigmoid,
    SinkscopeError,
    SinkWindow,
    Softmax1,
    Window,
    attached,
    perplexity,
)
from tests.core.test_evictions import CASES
from tests.support import naive_slots
from tests.support.zoo import build, inputs

TOKENS = 60


def losses_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )


def nll(record, policy=0):
    return torch.from_numpy(record.nll.values[policy][:, 1:]).double()


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("case", CASES)
def test_block_losses_equal_the_definition(case, block):
    policy, definition = CASES[case]
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    logits, _ = naive_slots.run(model, ids, **definition)
    record = perplexity(model, ids, [policy], block=block, progress=False)
    torch.testing.assert_close(nll(record), losses_of(logits, ids), atol=2e-4, rtol=1e-4)
    assert record.attrs["policies"] == repr(policy)


@pytest.mark.slow
@pytest.mark.parametrize("normaliser", [Softmax1(), Sigmoid(), ClippedSoftmax(-0.02), Softmax1(layers=[1], heads=[0])])
@pytest.mark.parametrize("policy", [Dense(), Window(20), SinkWindow(3, 20), SinkWindow(3, 20, values="mean")])
def test_losses_under_a_normaliser_are_those_of_one_forward_pass(normaliser, policy):
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    record = perplexity(model, ids, [policy], block=9, normaliser=normaliser, progress=False)
    with torch.no_grad(), attached(model, policy=policy, normaliser=normaliser):
        logits = model(ids).logits
    torch.testing.assert_close(nll(record), losses_of(logits, ids), atol=2e-5, rtol=1e-4)
    assert record.attrs["normaliser"] == repr(normaliser)
    assert not np.allclose(record.nll, perplexity(model, ids, [policy], progress=False).nll, atol=1e-3, equal_nan=True)


def test_recomputed_windows_are_read_under_the_normaliser():
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"][:1]
    record = perplexity(model, ids, [Recompute(20)], normaliser=Softmax1(), progress=False)
    with torch.no_grad(), attached(model, normaliser=Softmax1()):
        for at in (25, 40, 58):
            logits = model(ids[:, at - 19 : at + 1]).logits[:, -1]
            loss = F.cross_entropy(logits, ids[:, at + 1])
            assert float(record.nll[0, 0, at + 1]) == pytest.approx(float(loss), abs=2e-5)


@pytest.mark.slow
def test_a_policy_in_some_layers_reads_far_beyond_its_cache():
    """Other layers keep everything, so positions are not counted anew; long texts in small blocks show it."""
    model, ids = build("llama"), torch.randint(3, 128, (1, 300), generator=torch.Generator().manual_seed(0))
    policies = [SinkWindow(2, 30, layers=[0]), SinkWindow(2, 30, heads=[1]), Window(32, layers=[1], heads=[0, 1])]
    small, whole = (perplexity(model, ids, policies, block=block, progress=False).nll for block in (16, 300))
    np.testing.assert_allclose(small, whole, atol=2e-4)


@pytest.mark.slow
def test_checkpoints_of_doses_and_normalisers_are_kept_apart(tmp_path):
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    doses = [Dose(1.0), Dose(-1.0), Dose(-math.inf), Dose(0.5)]
    first = perplexity(model, ids, doses, checkpoint=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == len(doses)
    again = perplexity(model, ids, doses, checkpoint=tmp_path, progress=False)
    assert np.array_equal(first.nll, again.nll, equal_nan=True)
    with pytest.raises(SinkscopeError, match="normaliser"):
        perplexity(model, ids, doses, checkpoint=tmp_path, normaliser=Softmax1(), progress=False)
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4])
    folder = tmp_path / "learned"
    perplexity(model, ids, [Dense()], checkpoint=folder, normaliser=LearnedSink(logits), progress=False)
    with pytest.raises(SinkscopeError, match="normaliser"):
        nearly = LearnedSink(logits + torch.tensor([0, 0, 0, 1e-6]))
        perplexity(model, ids, [Dense()], checkpoint=folder, normaliser=nearly, progress=False)


@pytest.mark.slow
def test_the_collapse_is_decomposed_over_the_same_tokens():
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    record = sinkscope.decompose(model, ids, 24, 4, progress=False)
    logits = {
        "sinks 4+20": {},
        "sinks 4+20, mean values": {"values": "mean"},
        "sinks 4+20, values zeroed": {"values": "zeroed"},
        "sinks 4+20, values only": {"values": "added"},
    }
    assert record.policy.values.tolist() == [*logits, "window 24"]
    for name, values in logits.items():
        kept = dict(kept=lambda at: [key for key in range(at + 1) if key < 4 or key >= at - 20], in_cache=True)
        expected, _ = naive_slots.run(model, ids, anchors=range(4), since=25, **kept, **values)
        found = torch.from_numpy(record.nll.sel(policy=name).values[:, 1:]).double()
        torch.testing.assert_close(found, losses_of(expected, ids), atol=2e-4, rtol=1e-4)
    early = record.nll.isel(token=slice(1, 26))
    np.testing.assert_allclose(early, early.isel(policy=[0] * 5), atol=2e-5)  # nothing is evicted yet


@pytest.mark.slow
def test_layers_are_taken_in_groups_with_the_rest_dense():
    model, ids = build("llama"), inputs("llama", tokens=TOKENS)["input_ids"]
    record = sinkscope.decompose_by_layer(model, ids, 24, groups=2, progress=False)
    assert record.part.values.tolist() == ["dense"] + ["phantom", "values only", "window"] * 2
    assert record.first_layer.values.tolist() == [-1, 0, 0, 0, 1, 1, 1] == record.last_layer.values.tolist()
    expected, _ = naive_slots.run(model, ids, kept=lambda at: list(range(max(0, at - 24), at + 1)), layers=[1])
    torch.testing.assert_close(nll(record, 6), losses_of(expected, ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ids: perplexity(build("bloom"), ids, [SinkWindow(2, 20, values="zeroed")]), "not under `sinks 2"),
        (lambda ids: perplexity(build("bloom"), ids, [Window(20, layers=[0])]), "not under `window 20, layer 0"),
        (lambda ids: perplexity(build("bloom"), ids, [Dense()], normaliser=Softmax1()), "attention interface"),
        (lambda ids: perplexity(build("llama"), ids, [Evict([0], heads=[9])]), "head 9"),
        (
            lambda ids: perplexity(build("llama"), ids, [EvictRecent(3), EvictRecent(3)]),
            "two of the policies are named",
        ),
        (lambda ids: sinkscope.decompose(build("llama"), ids, 4, 4), "4 sinks leave no window"),
        (lambda ids: sinkscope.decompose_by_layer(build("llama"), ids, 24, groups=3), "more than the 2 layers"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(SinkscopeError, match=message):
        call(inputs("llama", tokens=TOKENS)["input_ids"])
