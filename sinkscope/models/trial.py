"""What has to hold before a model is tried on a few tokens."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import nn

from sinkscope.errors import SinkscopeError

SCOPED: WeakSet[nn.Module] = WeakSet()
"""Attention modules that carry a scope now."""


def check_eval(model: Any, what: str) -> None:
    """Raise SinkscopeError for a model in training mode, where `what` would be random."""
    if model.training:
        raise SinkscopeError(
            f"{type(model).__name__} is in training mode, where dropout makes {what} random; call model.eval()."
        )


def check_unscoped(base: Any) -> None:
    """Raise SinkscopeError for a model that carries a scope, which would measure the tokens it is tried on."""
    if any(module in SCOPED for module in base.modules()):
        raise SinkscopeError(
            f"{type(base).__name__} carries a scope, which would record the tokens it is tried on; leave the scope, or "
            "do this before it."
        )
