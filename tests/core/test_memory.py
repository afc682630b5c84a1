"""Nothing of size T x T is made where none is asked for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sinkscope import ALL, FREE, capture
from tests.support.zoo import build, inputs

TOKENS = 3000


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and not made._is_view():  # a view makes nothing
                self.entries = max(self.entries, made.numel())
        return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral_sliding", "gpt_oss"])
@pytest.mark.parametrize("padding", [0, 11])
def test_no_tensor_is_as_large_as_a_map(name, padding):
    given = inputs(name, batch=1, tokens=TOKENS)
    if padding:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        given["attention_mask"][0, :padding] = 0
    model = build(name)
    with torch.no_grad(), capture(model, ALL), LargestTensor() as seen:
        model(**given)
    assert 0 < seen.entries < TOKENS**2 / 2


@pytest.mark.slow
def test_the_eager_maps_would_be_seen():
    model = build("llama", "eager")
    with torch.no_grad(), LargestTensor() as seen:
        model(**inputs("llama", batch=1, tokens=TOKENS))
    assert seen.entries >= TOKENS**2


def test_free_probes_make_nothing_beyond_the_keys_they_keep():
    sizes = {}
    for tokens in (1000, 2000):
        model = build("llama")
        with torch.no_grad(), capture(model, FREE), LargestTensor() as seen:
            model.model(**inputs("llama", batch=1, tokens=tokens), use_cache=False)
        sizes[tokens] = seen.entries
    assert sizes[2000] == 2 * sizes[1000]  # linear
