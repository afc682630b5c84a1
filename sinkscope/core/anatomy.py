"""Where a model keeps its attention: the modules that a scope hangs its hooks on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sinkscope.errors import SinkscopeError


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that matter here.

    Attributes:
        base: the module that takes tokens (or pixels) and runs the layers; the model without its head.
        attentions: attention modules by name, in the order of the layers.
        layers: the decoder (or encoder) layer around each attention module, by name, in the same order.
        interface: whether the attention goes through transformers' attention interface.
    """

    base: nn.Module
    attentions: dict[str, nn.Module]
    layers: dict[str, nn.Module]
    interface: bool


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the attention modules of a model: the innermost modules with "Attention" in the name of their class.

    Raises:
        SinkscopeError: not a torch module, no attention in it, or an encoder-decoder model.
    """
    if not isinstance(model, nn.Module):
        raise SinkscopeError(
            f"expected a loaded model (a torch module), got {type(model).__name__}; sinkscope.load() makes one."
        )
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise SinkscopeError(
            f"{type(model).__name__} is an encoder-decoder model, whose cross attention sinkscope does not measure; "
            "pass its encoder, or a decoder-only model."
        )
    named = {name: module for name, module in model.named_modules() if "Attention" in type(module).__name__}
    attentions = {
        name: module for name, module in named.items() if not any(other.startswith(f"{name}.") for other in named)
    }
    if not attentions:
        raise SinkscopeError(
            f"{type(model).__name__} has no attention modules (no class with Attention in its name); "
            "sinkscope measures models with softmax attention."
        )
    can_set: Any = getattr(model, "_can_set_attn_implementation", None)
    return Anatomy(
        base=_base_around(model, attentions),
        attentions=attentions,
        layers=dict(_layer_around(model, name) for name in attentions),
        interface=bool(can_set and can_set()),
    )


def _base_around(model: nn.Module, attentions: dict[str, nn.Module]) -> nn.Module:
    """The innermost transformers model that holds all the attention modules; the model itself where there is none."""
    base = model
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and all(path.startswith(f"{name}.") for path in attentions if name):
            base = module
    return base


def _layer_around(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The element of the innermost module list on the way to a module; the module itself where there is none."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
            inside = ".".join(parts[: end + 1])
            return inside, model.get_submodule(inside)
    return name, model.get_submodule(name)
