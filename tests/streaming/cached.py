"""Running a model on a sink cache."""

from __future__ import annotations

import torch


def run(model, ids, cache, **options):
    """Logits of a forward pass by hand."""
    with torch.no_grad():
        return model(ids, cache=cache, use_cache=True, **options).logits


def greedy(model, ids, cache, new, **options):
    """The ids with `new` more, found greedily."""
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), cache=cache, max_new_tokens=new, do_sample=False, **options
    )
