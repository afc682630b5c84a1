"""A second model over the same weights."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn


def twin_of(model: nn.Module) -> nn.Module:
    """A copy of a model's modules and configuration that shares its parameters and buffers.

    What is hung on the twin, or set in it, does not touch the model, which another thread may be using; its weights
    cost nothing again. Training the model trains the twin.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)
