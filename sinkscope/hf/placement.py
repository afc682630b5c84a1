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


def absent_weights(model: nn.Module) -> tuple[str, bool] | None:
    """Weights that nothing brings to where they are needed, by path, and whether accelerate lost them; None where none.

    Of tied weights on two devices transformers may leave those of one nowhere.
    """
    known: dict[int, set[str]] = {}
    brought: set[nn.Module] = set()
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            kept, inside = getattr(each, "weights_map", None), getattr(each, "place_submodules", False)
            if kept is None:
                continue
            brought |= set(module.modules()) if inside else {module}
            held = getattr(kept, "dataset", kept)
            names = known.setdefault(id(held), set(getattr(held, "all_keys", held)))
            for name, _ in module.named_parameters(recurse=inside):
                if getattr(kept, "prefix", "") + name not in names:
                    return f"{path}.{name}".strip("."), True
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_meta and module not in brought:
                return f"{path}.{name}".strip("."), False
    return None


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
