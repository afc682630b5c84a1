"""Setting the attention implementation of a model, and putting it back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from sinkscope.core.interface import NAME
from sinkscope.errors import SinkscopeError


def use_implementation(model: Any, undo: ExitStack) -> None:
    """Send a transformers model's attention through sinkscope until `undo` is closed.

    Raises:
        SinkscopeError: its configuration is shared with a model that carries a scope now.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    if any(implementation == NAME for _, implementation in before):
        raise SinkscopeError(
            "this model shares its configuration with another one that carries a scope; leave that one first."
        )

    def restore() -> None:
        for config, implementation in before:  # outer ones first: setting one sets those inside it
            config._attn_implementation = implementation

    undo.callback(restore)
    model.set_attn_implementation(NAME)


def _configs(model: Any) -> list[Any]:
    """The configurations of a model, its parts and theirs, each once, outer ones first."""
    found: dict[int, Any] = {}
    waiting = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "sub_configs")]
    while waiting:
        config = waiting.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            waiting += [part for key in config.sub_configs if (part := getattr(config, key, None)) is not None]
    return list(found.values())
