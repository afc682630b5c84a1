"""What a policy means for each layer of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.core.anatomy import Anatomy
from sinkscope.core.eviction import Eviction
from sinkscope.core.policies import Policy, StaticPolicy
from sinkscope.core.readiness import check_unchunked
from sinkscope.core.rotary import find_rotations
from sinkscope.core.rotation import Rotation
from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import native_windows as cached_windows
from sinkscope.hf.models import key_value_heads, query_heads


class BoundLayer:
    """One attention layer, as a policy is told of it when it binds itself.

    Attributes:
        index: which of the attention layers it is, counted from 0.
        number: its number among the model's layers.
        heads, kv_heads: query heads, and the key-value heads that they share.
    """

    def __init__(self, model: nn.Module, index: int, number: int) -> None:
        self.index, self.number = index, number
        self.heads, self.kv_heads = query_heads(model) or 0, key_value_heads(model) or 0
        self._model = model

    @property
    def rotation(self) -> Rotation | None:
        """The layer's rotary geometry; None where keys do not depend on position.

        Raises:
            SinkscopeError: keys depend on position in another way (learned absolute positions).
        """
        return find_rotations(self._model)[self.index]


def layer_evictions(policy: Policy, model: nn.Module, anatomy: Anatomy) -> list[tuple[Eviction, ...]]:
    """How each attention layer carries out a policy; nothing where a layer is left as it is.

    A model that mixes layers with a native sliding window and full ones keeps the former as they are: the policy acts
    on the full ones. Where every layer slides, a policy that keeps the last tokens takes the place of the window in all
    of them, and no other can act.

    Raises:
        SinkscopeError: the policy cannot be carried out on this model.
    """
    if not isinstance(policy, Policy):
        raise SinkscopeError(f"{policy!r} is not a policy; give an instance such as sinkscope.SinkWindow(4, 1020).")
    check_policy_place(policy, model, anatomy)
    if isinstance(policy, StaticPolicy):
        policy.check_sees()
    if policy.is_dense:
        return [()] * len(anatomy.parts)
    if policy.recomputed:
        raise SinkscopeError(
            f"{policy!r} runs every window as a text of its own, so it is no way to attend in one forward pass; "
            "use sinkscope.perplexity."
        )
    if not anatomy.interface:
        raise SinkscopeError(
            f"{type(model).__name__} does not use transformers' attention interface, so its attention cannot follow a "
            "policy in one forward pass; use sinkscope.perplexity or a SinkCache, which go token by token."
        )
    natives = _own_windows(policy, model, anatomy)
    if policy.kept is None and None not in natives:
        raise SinkscopeError(
            f"every layer of {type(model).__name__} slides over its own window, so there is none whose keys "
            f"`{policy.name}` could act on; give a policy with a window."
        )
    if policy.kept is not None:
        find_rotations(model)  # or the reason why keys cannot leave a cache of this model
    slides = [None in natives and native is not None for native in natives]
    return [
        () if sliding or not policy.acts_in(part.number) else policy.bind(BoundLayer(model, index, part.number))
        for index, (part, sliding) in enumerate(zip(anatomy.parts, slides, strict=True))
    ]


def check_policy_place(policy: Policy, model: nn.Module, anatomy: Anatomy) -> None:
    """Raise SinkscopeError when a policy names layers or heads that a model does not have."""
    policy.check_place(anatomy.numbers, query_heads(model), key_value_heads(model))


def _own_windows(policy: Policy, model: nn.Module, anatomy: Anatomy) -> list[int | None]:
    """The windows of the attention layers; keys can be acted on in layers that have no cache of their own."""
    if policy.kept is not None:
        return native_windows(model, len(anatomy.parts))
    check_unchunked(model)
    windows = cached_windows(model)
    return [windows.get(number) for number in anatomy.numbers]


def native_windows(model: Any, layers: int) -> list[int | None]:
    """The model's own sliding window in each attention layer, in tokens, that being read included; None for full ones.

    Args:
        model: a decoder.
        layers: how many attention layers it has; each needs one of its own in the cache.

    Raises:
        SinkscopeError: attention in chunks (llama4); other layers in the cache, or layers that share one (gemma3n).
    """
    check_unchunked(model)
    windows = list(cached_windows(model).values())
    if len(windows) != layers:
        raise SinkscopeError(
            f"{type(model).__name__} has {layers} attention layers, but {len(windows)} layers in its cache, and a "
            "policy needs one for each; it cannot be streamed."
        )
    return windows
