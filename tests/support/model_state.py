"""All that a scope could change in a model."""

from __future__ import annotations


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return [(name, kind, len(getattr(module, kind))) for name, module in model.named_modules() for kind in kinds]


def state_of(model):
    configs = {name: module.config for name, module in model.named_modules() if hasattr(module, "config")}
    return (
        hooks_of(model),
        {name: (config.to_dict(), config._attn_implementation) for name, config in configs.items()},
        {name: module.training for name, module in model.named_modules()},
        sorted(vars(model)),
    )
