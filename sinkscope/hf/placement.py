"""Where a model keeps its weights, and where it wants what it reads.

accelerate leaves weights that it keeps elsewhere (on the disk, or in memory beside a GPU) on the device "meta", and
brings them back while their module runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn

from sinkscope.hf.models import input_embeddings


def reading_device(module: nn.Module) -> torch.device:
    """The device on which a model reads its tokens, or a part of it what it is given; "meta" without weights."""
    embeddings = input_embeddings(module)
    reader = embeddings if isinstance(embeddings, nn.Module) else module
    devices = (getattr(getattr(each, "_hf_hook", None), "execution_device", None) for each in reader.modules())
    if (brought := next((device for device in devices if device is not None), None)) is not None:
        return torch.device(brought)
    weights = chain(reader.parameters(), module.parameters(), module.buffers())
    return next((each.device for each in weights), torch.device("cpu"))


def is_without_weights(model: nn.Module) -> bool:
    """Whether a model has weights on the device "meta" that nothing brings back."""
    return any(each.is_meta for each in model.parameters()) and not any(
        hasattr(module, "_hf_hook") for module in model.modules()
    )


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Bring the weights of a module itself, of none inside it, to where it runs."""
    with align_module_device(module):
        yield


def own_state(module: nn.Module) -> dict[str, Any]:
    """What a module itself keeps, by name: parameters, buffers, and what it packs otherwise."""
    state: dict[str, Any] = {}
    with weights_at_hand(module):
        module._save_to_state_dict(state, "", keep_vars=False)  # what modules of their own kinds override
        return state | dict(module.named_buffers(recurse=False, remove_duplicate=False))
