"""Where a model keeps its attention: the modules that a scope hangs its hooks on."""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
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
from sinkscope.hf.models import begin_token, is_encoder_decoder, is_pretrained, model_type, name_or_path, revision


@dataclass(frozen=True)
class Part:
    """One attention layer of a model.

    Attributes:
        number: its place among the model's layers; in a hybrid model those without attention count too.
        name: path of the attention module.
        attention: the attention module.
        layer: the decoder or encoder layer around it, or None where blocks are not kept in a list.
    """

    number: int
    name: str
    attention: nn.Module
    layer: nn.Module | None


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that matter here.

    Attributes:
        base: the module that takes tokens (or pixels) and runs the layers; the model without its head.
        parts: the attention layers, in order.
        interface: whether the attention goes through transformers' attention interface.
    """

    base: nn.Module
    parts: list[Part]
    interface: bool

    @property
    def numbers(self) -> list[int]:
        """The number of each attention layer."""
        return [part.number for part in self.parts]


@dataclass(frozen=True)
class _Names:
    """An anatomy by the names of its modules, which keeps no model alive; `modules` is how many the model had."""

    modules: int
    base: str
    attentions: tuple[str, ...]
    kinds: tuple[type, ...]


_FOUND: WeakKeyDictionary[nn.Module, _Names] = WeakKeyDictionary()


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the attention modules of a model: the innermost modules with "Attention" in the name of their class.

    They are looked for once; a model whose modules were replaced or added to is looked at again.

    Raises:
        SinkscopeError: not a torch module, no attention in it, an encoder-decoder, or several models in one.
    """
    if not isinstance(model, nn.Module):
        raise SinkscopeError(
            f"expected a loaded model (a torch module), got {type(model).__name__}; sinkscope.load() makes one."
        )
    names = _FOUND.get(model)
    if names is None or not _still_there(model, names):
        names = _FOUND[model] = _search(model)
    base = model.get_submodule(names.base)
    attentions = {name: model.get_submodule(name) for name in names.attentions}
    return Anatomy(base, _parts(model, attentions), interface=has_interface(base))


def _still_there(model: nn.Module, names: _Names) -> bool:
    try:
        kinds = tuple(type(model.get_submodule(name)) for name in names.attentions)
    except AttributeError:
        return False
    return kinds == names.kinds and sum(1 for _ in model.modules()) == names.modules


def _search(model: nn.Module) -> _Names:
    if is_encoder_decoder(model):
        raise SinkscopeError(
            f"{type(model).__name__} has cross attention (encoder-decoder), which sinkscope does not measure; "
            "pass its encoder, or a decoder-only model."
        )
    named = {name: module for name, module in model.named_modules() if "Attention" in type(module).__name__}
    outer = {name[:end] for name in named for end in range(len(name)) if name[end] == "."}
    innermost = [name for name in named if name not in outer]
    if not innermost:
        raise SinkscopeError(
            f"{type(model).__name__} has no attention modules (no class with Attention in its name); "
            "sinkscope measures models with softmax attention."
        )
    kinds = tuple(type(named[name]) for name in innermost)
    return _Names(sum(1 for _ in model.modules()), _base_around(model, innermost), tuple(innermost), kinds)


def _base_around(model: nn.Module, names: list[str]) -> str:
    """Name of the innermost transformers model around the attention modules; the model itself where there is none."""
    models = {name: module for name, module in model.named_modules() if is_pretrained(module)}
    around = {
        max((name for name in models if attention.startswith(f"{name}." if name else "")), key=len, default="")
        for attention in names
    }
    if len(around) > 1:
        raise SinkscopeError(
            f"{type(model).__name__} holds several models with attention ({', '.join(sorted(around))}), whose layers "
            f"would be mixed; pass one of them, such as model.{max(around, key=len)}."
        )
    return around.pop()


def _parts(model: nn.Module, attentions: dict[str, nn.Module]) -> list[Part]:
    """The attention layers, numbered by their place in the model's list of layers where there is one such list."""
    places = [_place_in_list(model, name) for name in attentions]
    indices = [index for _, index in places]
    numbered = all(earlier < later for earlier, later in pairwise(indices)) and -1 not in indices
    numbers = indices if numbered else list(range(len(places)))
    return [
        Part(number, name, module, layer)
        for number, (name, module), (layer, _) in zip(numbers, attentions.items(), places, strict=True)
    ]


def _place_in_list(model: nn.Module, name: str) -> tuple[nn.Module | None, int]:
    """The element of the innermost list of modules on the way to a module, and its index; (None, -1) without a list."""
    steps = name.split(".")
    for end in range(len(steps) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(steps[:end])), (nn.ModuleList, nn.Sequential)):
            return model.get_submodule(".".join(steps[: end + 1])), int(steps[end])
    return None, -1


def model_attributes(model: nn.Module) -> dict[str, Any]:
    """Name, family, revision, dtype and device of a model, and the versions of what ran it."""
    parameter = next(model.parameters(), torch.empty(0))
    return {
        "model": _public_name(name_or_path(model)) or type(model).__name__,
        "model_type": model_type(model),
        "revision": revision(model),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "sinkscope": sinkscope.__version__,
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _public_name(name: str) -> str:
    """A name on the hub as it is; of a path its last part, since the folders of one machine mean nothing elsewhere."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def token_attributes(record: xr.Dataset, model: nn.Module) -> dict[str, Any]:
    """How many tokens were read, their hash, and whether every sequence starts with the model's BOS token."""
    if "token_id" not in record.coords:
        return {"sequences": record.sizes["sequence"], "tokens": int(record.length.sum()), "bos": "unknown"}
    ids = record.token_id.values
    bos = begin_token(model)
    starts = "unknown"
    if bos is not None and bool((ids[:, 0] >= 0).all()):
        starts = "yes" if np.isin(ids[:, 0], bos).all() else "no"
    return {
        "sequences": len(ids),
        "tokens": int((ids >= 0).sum()),
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest(),
        "bos": starts,
    }


def weights_hash(model: nn.Module) -> str:
    """A hash that changes with the weights: of sums over pieces of each parameter, its bits read as whole numbers."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        bits = values.view(whole.get(values.itemsize, torch.uint8))
        sums = torch.stack([piece.sum(dtype=torch.int64) for piece in bits.chunk(64)])  # exact in any order
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sums.cpu().numpy().tobytes())
    return digest.hexdigest()
