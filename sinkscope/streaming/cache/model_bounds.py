"""Bounds in the model itself that a cache must keep within, or set aside: tables of positions, and native windows."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.interface import EVICTIONS, NAME
from sinkscope.core.policies import SinkWindow
from sinkscope.core.policy_on_layers import native_windows
from sinkscope.core.rotary import changes_with_length, position_ceiling, position_limit
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import implementation
from sinkscope.hf.models import alibi_limit


def checked_ceiling(model: Any, policy: SinkWindow) -> int | None:
    """Positions from which on the model fails or changes its rotation, or None when there is no such limit.

    Raises:
        SinkscopeError: the cache itself is longer than the model can look back.
    """
    needed = policy.sinks + policy.window + 1
    biases = alibi_limit(model)
    limit = position_limit(model) if changes_with_length(model) else None
    for most, what in ((biases, "has ALiBi distances"), (limit, "keeps its rotary frequencies")):
        if most and needed > most:
            raise SinkscopeError(
                f"{type(model).__name__} {what} for {most} tokens, and {needed} are needed by sinks={policy.sinks}, "
                f"window={policy.window} and the token being read; take a smaller window."
            )
    return position_ceiling(model)


def hides_sinks(model: nn.Module, layers: int, policy: SinkWindow) -> bool:
    """Whether every layer slides, in a window that would hide the sinks: the policy takes its place."""
    windows = native_windows(model, layers)
    return all(windows) and any(window <= policy.sinks + policy.window for window in windows if window)


def has_policy(base: Any) -> bool:
    """Whether a scope has the model's attention evict tokens by itself."""
    return implementation(base) == NAME and any(part.attention in EVICTIONS for part in find_anatomy(base).parts)
