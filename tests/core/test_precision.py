"""Numbers in half precision, with tied and untied heads, are those of the model itself in the same precision.

Tolerances are some three times the largest differences seen (docs/precision.md has those of the demo model): the
model's eager attention rounds each weight to its precision, of which sinkscope's logsumexp is in float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sinkscope as S
from sinkscope.hf.attention import implementation
from sinkscope.hf.caches import with_cache
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=40)["input_ids"]
POLICY = S.SinkWindow(2, 9)
MAPS = {torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}
LOSSES = {torch.float32: 3e-5, torch.bfloat16: 0.5, torch.float16: 5e-2}  # nats, of logits that reach 20


@torch.no_grad()
def own_maps(model: nn.Module, ids: Tensor) -> Tensor:
    """Of the model's eager attention: [layer, head, query, key]."""
    before = implementation(model)
    model.set_attn_implementation("eager")
    maps = model(ids, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(before)
    return torch.stack(maps)[:, 0].float()


@torch.no_grad()
def one_by_one(model: nn.Module, ids: Tensor) -> Tensor:
    with S.SinkCache(model, *POLICY.kept) as cache:
        logits = [model(ids[:, at : at + 1], **with_cache(model, cache)).logits[0] for at in range(ids.shape[1] - 1)]
    return F.cross_entropy(torch.cat(logits).float(), ids[0, 1:], reduction="none")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", MAPS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "gpt_neox"])
def test_maps_and_losses_are_those_of_the_model_itself_in_its_precision(family, dtype):
    model = build(family, dtype=dtype)
    maps = S.attention_maps(model, IDS)
    assert float((torch.from_numpy(maps.values) - own_maps(model, IDS)).abs().max()) < MAPS[dtype]
    record = S.perplexity(model, IDS, [S.Dense(), POLICY], progress=False)
    assert record.attrs["dtype"] == str(dtype).removeprefix("torch.")
    with torch.no_grad():
        dense = F.cross_entropy(model(IDS).logits[0, :-1].float(), IDS[0, 1:], reduction="none")
    np.testing.assert_allclose(record.nll[0, 0, 1:], dense, atol=LOSSES[dtype])
    np.testing.assert_allclose(record.nll[1, 0, 1:], one_by_one(model, IDS), atol=LOSSES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", MAPS)
def test_a_tied_head_changes_nothing_but_the_logits(dtype):
    """A tied head is the same weights twice: what a copy of them gives."""
    tied, untied = build("gemma", dtype=dtype), build("gemma", dtype=dtype)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    losses = [S.perplexity(each, IDS, [S.Dense(), POLICY], progress=False).nll for each in (tied, untied)]
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(S.attention_maps(tied, IDS), S.attention_maps(untied, IDS))
    assert S.cost(tied, POLICY, 50).flops == S.cost(untied, POLICY, 50).flops
