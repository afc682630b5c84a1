"""Where a model keeps its attention: the modules that a scope hangs its hooks on."""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import nn

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import has_interface
from sinkscope.hf.models import begin_token, core, is_encoder_decoder, is_pretrained, origin
from sinkscope.hf.placement import reading_device


@dataclass(frozen=True)
class Part:
    """One attention layer of a model."""

    number: int  # its place among the model's layers; in a hybrid model those without attention count too
    name: str  # path of the attention module
    attention: nn.Module
    layer: nn.Module | None  # the decoder or encoder layer around it; None where blocks are not kept in a list


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that matter here."""

    base: nn.Module  # takes tokens (or pixels) and runs the layers: the model without its head
    parts: list[Part]  # the attention layers, in order
    interface: bool  # whether the attention goes through transformers' attention interface

    @property
    def numbers(self) -> list[int]:
        return [part.number for part in self.parts]


_FOUND: WeakKeyDictionary[nn.Module, tuple[int, str, dict[str, type]]] = WeakKeyDictionary()
"""How many modules a model has, the name of its base, and the classes of its attention modules by their names."""


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the attention modules of a model: the innermost modules with "Attention" in the name of their class.

    Where there is no such class, modules that say whether they are causal, which transformers' attention asks of them.
    They are looked for once; a model whose modules were replaced or added to is looked at again.
    """
    if not isinstance(model, nn.Module):
        raise SinkscopeError(
            f"expected a loaded model (a torch module), got {type(model).__name__}; sinkscope.load() makes one."
        )
    modules = dict(model.named_modules())
    count, base, kinds = _FOUND.get(model, (0, "", {}))
    if count != len(modules) or any(type(modules.get(name)) is not kind for name, kind in kinds.items()):
        base, kinds = _search(model, modules)
        _FOUND[model] = (len(modules), base, kinds)
    return Anatomy(modules[base], _parts(modules, list(kinds)), interface=has_interface(modules[base]))


def _search(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, dict[str, type]]:
    """The name of the innermost transformers model around the attention modules, and their classes by name."""
    if is_encoder_decoder(model):
        raise SinkscopeError(
            f"{type(model).__name__} has cross attention (encoder-decoder), which sinkscope does not measure; "
            "pass its encoder, or a decoder-only model."
        )
    named = [name for name, module in modules.items() if "Attention" in type(module).__name__]
    named = named or [name for name, module in modules.items() if "is_causal" in vars(module)]
    outer = {name[:end] for name in named for end in range(len(name)) if name[end] == "."}
    kinds = {name: type(modules[name]) for name in named if name not in outer}
    if not kinds:
        raise SinkscopeError(
            f"{type(model).__name__} has no attention modules (no class with Attention in its name, and none that says "
            "whether it is causal); sinkscope measures models with softmax attention."
        )
    models = [name for name, module in modules.items() if is_pretrained(module)]
    around = {
        max((name for name in models if attention.startswith(f"{name}." if name else "")), key=len, default="")
        for attention in kinds
    }
    if len(around) > 1:
        raise SinkscopeError(
            f"{type(model).__name__} holds several models with attention ({', '.join(sorted(around))}), whose layers "
            f"would be mixed; pass one of them, such as model.{max(around, key=len)}."
        )
    return around.pop(), kinds


def _parts(modules: dict[str, nn.Module], names: list[str]) -> list[Part]:
    """The attention layers, numbered by their place in the model's list of layers where there is one such list.

    The second attention of a layer, across to an encoder, is numbered after all the first ones.
    """
    places = [_place_in_list(modules, name) for name in names]
    first = [place not in places[:at] for at, place in enumerate(places)]
    indices = [index for (_, index), is_first in zip(places, first, strict=True) if is_first]
    if -1 in indices or any(later <= earlier for earlier, later in pairwise(indices)):
        numbers = list(range(len(places)))
    else:
        own, behind = iter(indices), count(indices[-1] + 1)
        numbers = [next(own) if is_first else next(behind) for is_first in first]
    return [
        Part(number, name, modules[name], _layer_around(modules, name))
        for number, name in zip(numbers, names, strict=True)
    ]


def _place_in_list(modules: dict[str, nn.Module], name: str) -> tuple[str, int]:
    """The innermost list of modules on the way to a module, and the place in it; ("", -1) without a list."""
    steps = name.split(".")
    for end in range(len(steps) - 1, 0, -1):
        if isinstance(modules[".".join(steps[:end])], (nn.ModuleList, nn.Sequential)):
            return ".".join(steps[:end]), int(steps[end])
    return "", -1


def _layer_around(modules: dict[str, nn.Module], name: str) -> nn.Module | None:
    """The innermost element of a list of modules that holds a module beside others; None without one."""
    steps = name.split(".")
    for end in range(len(steps) - 1, 1, -1):
        if isinstance(modules[".".join(steps[: end - 1])], (nn.ModuleList, nn.Sequential)):
            return modules[".".join(steps[:end])]
    return None


def model_attributes(model: nn.Module) -> dict[str, Any]:
    """Name, family, revision, dtype and device of a model, and the versions of what ran it."""
    parameter, known, inner = next(model.parameters(), torch.empty(0)), origin(model), core(model)
    name = Path(known["model"])
    public = name.name if name.exists() or name.is_absolute() else known["model"]  # folders mean nothing elsewhere
    wrapper = {} if inner is model else {"wrapper": type(model).__name__}
    return known | {
        "model": public or type(inner).__name__,
        **wrapper,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(reading_device(model)),
        "transformers": version("transformers"),
        **run_attributes(),
    }


def run_attributes() -> dict[str, Any]:
    """The versions of what runs here whatever the model is, and the time."""
    return {
        "sinkscope": sinkscope.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def token_attributes(record: xr.Dataset, model: nn.Module) -> dict[str, Any]:
    """How many tokens were read, their hash, and whether every sequence starts with the model's BOS token."""
    if "token_id" not in record.coords:
        return {"sequences": record.sizes["sequence"], "tokens": int(record.length.sum()), "bos": "unknown"}
    ids = record.token_id.values
    bos, starts = begin_token(model), "unknown"
    if bos is not None and bool((ids[:, 0] >= 0).all()):
        starts = "yes" if np.isin(ids[:, 0], bos).all() else "no"
    return {
        "sequences": len(ids),
        "tokens": int((ids >= 0).sum()),
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest(),
        "bos": starts,
    }
