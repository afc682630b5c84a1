"""What a policy means for each layer of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.core.anatomy import Anatomy
from sinkscope.core.eviction import Eviction
from sinkscope.core.policies import Policy
from sinkscope.core.rotary import find_rotations
from sinkscope.errors import SinkscopeError


def layer_evictions(policy: Policy, model: nn.Module, anatomy: Anatomy) -> list[Eviction | None]:
    """How each attention layer carries out a policy; None where a layer is left as it is.

    A model that mixes layers with a native sliding window and full ones keeps the former as they are: the policy acts
    on the full ones. Where every layer slides, the policy takes the place of the window in all of them.

    Raises:
        SinkscopeError: the policy cannot be carried out on this model.
    """
    name = type(model).__name__
    if not isinstance(policy, Policy):
        raise SinkscopeError(f"{policy!r} is not a policy; give an instance such as sinkscope.SinkWindow(4, 1020).")
    if policy.window is None:
        return [None] * len(anatomy.parts)
    if policy.recomputed:
        raise SinkscopeError(
            f"{policy!r} runs every window as a text of its own, so it is no way to attend in one forward pass; "
            "use sinkscope.perplexity."
        )
    if not anatomy.interface:
        raise SinkscopeError(
            f"{name} does not use transformers' attention interface, so its attention cannot follow a policy in one "
            "forward pass; use sinkscope.perplexity or a SinkCache, which go token by token."
        )
    rotations = find_rotations(model)
    turning = policy.sinks > 0 and policy.positions == "cache"
    natives = native_windows(model, len(anatomy.parts))
    mixed = None in natives
    return [
        None if mixed and native else Eviction(policy.sinks, policy.window, rotation if turning else None)
        for native, rotation in zip(natives, rotations, strict=True)
    ]


def native_windows(model: Any, layers: int) -> list[int | None]:
    """The model's own sliding window in each layer, in tokens, the token being read included; None for full layers.

    Raises:
        SinkscopeError: attention in chunks (llama4), where what a token sees depends on its place in the text.
    """
    from transformers import DynamicCache

    config = model.config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(config, "layer_types", None) or []):
        raise SinkscopeError(
            f"{type(model).__name__} attends in chunks, whose borders are places in the text; it cannot be streamed."
        )
    cached: list[Any] = DynamicCache(config=config).layers
    windows = [
        getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None for layer in cached
    ]
    return windows if len(windows) == layers else [None] * layers
