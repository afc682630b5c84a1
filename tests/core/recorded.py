"""Records of all there is to measure."""

from __future__ import annotations

import torch

from sinkscope import ALL, Maps, capture

FULL = (*ALL[:-1], Maps(resolution=None))


def record_of(model, **given):
    """The record of one forward pass."""
    with torch.no_grad(), capture(model, FULL) as scope:
        model(**given)
    return scope.record
