"""An image that was read before moves nothing later; and what is no processor's output is refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import Dense, EveryNth, HeavyHitters, SinkscopeError, measure, perplexity
from tests.support.several import build_several, inputs_of

TEXT = torch.randint(3, 90, (41,), generator=torch.Generator().manual_seed(8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_5"])
def test_a_text_behind_an_image_has_the_losses_it_has_alone(name):
    fresh, used = build_several(name), build_several(name)
    with torch.no_grad():
        used(**inputs_of(name, 2))
    before = used.model.rope_deltas.clone()
    assert bool(before.any())  # else nothing is shown
    policies = [Dense(), EveryNth(3, 4), *([HeavyHitters(8, 4)] if name != "qwen3_5" else [])]
    expected = torch.nn.functional.cross_entropy(fresh(TEXT[None]).logits[0, :-1], TEXT[1:], reduction="none")
    for block in (7, 1024):
        one, other = (perplexity(model, [TEXT], policies, block=block)["nll"].values for model in (fresh, used))
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_allclose(other[0, 0, 1:], expected.detach(), atol=5e-5)
    assert torch.equal(used.model.rope_deltas, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.clear(), "there is nothing to read"),
        (lambda given: given.update(input_ids=None), "and there are no input_ids"),
        (lambda given: given.pop("input_ids"), "and there are no input_ids"),
        (lambda given: given.update(input_ids=given["input_ids"][0]), r"input_ids are torch\.int64 \(\d+,\)"),
        (lambda given: given.update(input_ids=given["input_ids"].float()), r"input_ids are torch\.float32"),
        (lambda given: given.update(pixel_values=given["pixel_values"].numpy()), "pixel_values is a ndarray"),
        (
            lambda given: given.update(attention_mask=torch.ones(3, 5).long()),
            "attention_mask has 3 rows, and input_ids 2",
        ),
    ],
)
@pytest.mark.parametrize("read", [measure, perplexity])
def test_what_is_no_processors_output_is_refused(change, message, read):
    given = dict(inputs_of("llava"))
    change(given)
    with pytest.raises(SinkscopeError, match=message):
        read(build_several("llava"), given)
