"""What has to hold before a model is tried on a few tokens."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import core
from sinkscope.hf.placement import absent_weights

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SCOPED: WeakSet[nn.Module] = WeakSet()
"""Attention modules that carry a scope now."""


def check_module(model: Any) -> None:
    """Raise SinkscopeError for what is no model at all."""
    if not isinstance(model, nn.Module):
        raise SinkscopeError(
            f"expected a loaded model (a torch module), got {type(model).__name__}; sinkscope.load() makes one."
        )


def check_weights(model: nn.Module, is_run: bool = True) -> None:
    """Raise SinkscopeError for a model without some of its weights; one whose cost is counted needs no numbers."""
    if not isinstance(model, nn.Module):  # which others say
        return
    if (absent := absent_weights(model)) is None:
        return
    path, is_lost = absent
    if is_lost:
        raise SinkscopeError(
            f"accelerate keeps {path} of {type(core(model)).__name__} elsewhere and cannot find it there, so the model "
            "does not run; give the parts that share these weights one place in device_map."
        )
    if is_run:
        raise SinkscopeError(
            f"{type(core(model)).__name__} has weights on torch's meta device, which holds no numbers ({path}); load "
            "them, as sinkscope.load() and from_pretrained do."
        )


def check_eval(model: Any, what: str) -> None:
    """Raise SinkscopeError for a model without weights, or in training mode, where `what` would be random."""
    check_module(model)
    check_weights(model)
    drops = (module.training for module in model.modules() if isinstance(module, DROPOUTS) and module.p)
    if core(model).training or any(drops):  # those of an adapter may be, inside a model that is not
        raise SinkscopeError(
            f"{type(model).__name__} is in training mode, in which dropout makes {what} random where there is any; "
            "call model.eval()."
        )


def check_unscoped(base: Any) -> None:
    """Raise SinkscopeError for a model that carries a scope, which would measure the tokens it is tried on."""
    if any(module in SCOPED for module in base.modules()):
        raise SinkscopeError(
            f"{type(base).__name__} carries a scope, which would record the tokens it is tried on; leave the scope, or "
            "do this before it."
        )
