"""Where a model keeps its attention: the modules that a scope hangs its hooks on."""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import nn

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.hf.attention import has_interface, makes_its_own_softmax
from sinkscope.hf.models import (
    begin_token,
    core,
    input_embeddings,
    is_encoder_decoder,
    is_pretrained,
    origin,
    setting,
    stream_name,
    takes_states,
)
from sinkscope.hf.placement import reading_device
from sinkscope.models.trial import check_module


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
    crosses: bool = False  # whether queries look at what another model made (cross-attention)
    told: int = 0  # layers that the model says it has: more than its modules where these run several times
    blocks: tuple[nn.Module, ...] = ()  # its layers by number, also without attention; empty where no one list has all

    @property
    def numbers(self) -> list[int]:
        return [part.number for part in self.parts]

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers that may run, later runs of a module too."""
        return [*self.numbers, *range(max(self.numbers) + 1, self.told)]

    @property
    def around(self) -> dict[nn.Module, tuple[list[int], int | None]]:
        """By layer: which of the parts are inside it, and the number it has where none of them runs, if it has one."""
        if self.blocks and self.told <= len(self.blocks):
            numbers = self.numbers
            return {
                block: ([index for index, own in enumerate(numbers) if own == number], number)
                for number, block in enumerate(self.blocks)
            }
        found: dict[nn.Module, tuple[list[int], int | None]] = {}
        for index, part in enumerate(self.parts):
            if part.layer is not None:
                found.setdefault(part.layer, ([], None))[0].append(index)
        return found


class Stream(NamedTuple):
    """Attention modules of one kind in one model."""

    name: str
    base: str  # path of the model that runs them
    kinds: dict[str, type]  # the classes of the modules, by their paths
    crosses: bool  # whether their queries look at what another model made


_FOUND: WeakKeyDictionary[nn.Module, tuple[int, list[Stream]]] = WeakKeyDictionary()
"""How many modules a model has, and its streams."""


def find_anatomy(model: nn.Module) -> Anatomy:
    """The attention modules of the part of a model that reads tokens and predicts; all of them where it has one part.

    Where there is no such class, modules that say whether they are causal, which transformers' attention asks of them.
    They are looked for once; a model whose modules were replaced or added to is looked at again.
    """
    return next(iter(find_streams(model).values()))


def find_streams(model: nn.Module) -> dict[str, Anatomy]:
    """Find the attention modules of a model: the innermost modules with "Attention" in the name of their class.

    Returns:
        By name, each of its streams of attention, that of the part that reads tokens and predicts first. A model of
        text has one, "text". One that reads images has "vision" beside it (or "audio"), and an encoder-decoder
        "decoder", "cross" (the decoder's queries on what the encoder made) and "encoder".
    """
    check_module(model)
    modules = dict(model.named_modules())
    count, streams = _FOUND.get(model, (0, []))
    known = {name: kind for stream in streams for name, kind in stream.kinds.items()}
    if count != len(modules) or any(type(modules.get(name)) is not kind for name, kind in known.items()):
        streams = _search(model, modules)
        _FOUND[model] = (len(modules), streams)
    found = {}
    for stream in streams:
        parts = _parts(modules, list(stream.kinds))
        found[stream.name] = Anatomy(
            modules[stream.base],
            parts,
            interface=has_interface(modules[stream.base])
            and not any(makes_its_own_softmax(modules[path]) for path in stream.kinds),
            crosses=stream.crosses,
            told=setting(modules[stream.base], "num_hidden_layers") or 0,
            blocks=() if stream.crosses else _blocks(modules, parts),
        )
    return found


def _search(model: nn.Module, modules: dict[str, nn.Module]) -> list[Stream]:
    """The streams of a model, the main one first."""
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
    around: dict[str, list[str]] = {}
    for attention in kinds:
        base = max((name for name in models if attention.startswith(f"{name}." if name else "")), key=len, default="")
        around.setdefault(base, []).append(attention)
    across = {base: _crossing(modules, base, names) for base, names in around.items()}
    main = _main(model, modules, around, across)
    streams: list[Stream] = []
    for base in sorted(around, key=lambda base: base != main):
        label = stream_name(model, modules[base], base == main and len(around) > 1)
        if label == "text" and base != main:
            raise SinkscopeError(
                f"{type(model).__name__} reads its text in several models with attention "
                f"({', '.join(sorted(around))}), whose tokens differ; pass the one to measure, and what it reads."
            )
        taken = {stream.name for stream in streams}
        for name, crosses in ((label, False), ("cross" if base == main else f"{label} cross", True)):
            paths = [path for path in around[base] if (path in across[base]) is crosses]
            if paths:
                unique = f"{name} ({base})" if name in taken else name
                streams.append(Stream(unique, base, {path: kinds[path] for path in paths}, crosses))
    return streams


def _main(
    model: nn.Module, modules: dict[str, nn.Module], around: dict[str, list[str]], across: dict[str, set[str]]
) -> str:
    """Of several models with attention the one that reads tokens and predicts: a decoder, or what embeds them.

    Raises:
        SinkscopeError: none of them does.
    """
    if len(around) == 1:
        return next(iter(around))
    if is_encoder_decoder(model) and len(looking := [base for base in around if across[base]]) == 1:
        return looking[0]
    reads = set(core(model).modules())  # a plain module around several models does not say which of them reads
    embeddings = input_embeddings(model) if all(modules[base] in reads for base in around) else None
    holding = [base for base in around if embeddings is not None and embeddings in set(modules[base].modules())]
    if len(holding) == 1:
        return holding[0]
    raise SinkscopeError(
        f"{type(model).__name__} holds several models with attention ({', '.join(sorted(around))}), and does not say "
        "which of them reads its tokens; pass that one."
    )


def _crossing(modules: dict[str, nn.Module], base: str, names: list[str]) -> set[str]:
    """Attention modules that look at what another model made.

    They take its states as an argument, and say so in the name of their class or stand behind another attention in
    their layer: a layer looks at its own text first.
    """
    found, layers = set(), set()
    for name in names:
        layer = _outermost_element(modules, base, name)
        is_second = layer is not None and layer in layers
        layers.add(layer)
        if takes_states(modules[name]) and (is_second or "Cross" in type(modules[name]).__name__):
            found.add(name)
    return found


def _outermost_element(modules: dict[str, nn.Module], base: str, name: str) -> str | None:
    """The path of the element of the outermost list of modules inside `base` on the way to a module."""
    steps = name.split(".")
    for end in range(base.count(".") + 1 if base else 0, len(steps)):
        if end and isinstance(modules[".".join(steps[:end])], (nn.ModuleList, nn.Sequential)):
            return ".".join(steps[: end + 1])
    return None


def _parts(modules: dict[str, nn.Module], names: list[str]) -> list[Part]:
    """The attention layers, numbered by their place in the model's list of layers where there is one such list.

    The second attention of a layer is numbered after all the first ones.
    """
    places = [_places_in_lists(modules, name) for name in names]
    for depth in range(max(map(len, places))):  # the innermost list first
        found = [each[depth] if depth < len(each) else ("", -1) for each in places]
        first = [place not in found[:at] for at, place in enumerate(found)]
        indices = [index for (_, index), is_first in zip(found, first, strict=True) if is_first]
        ascending = -1 not in indices and all(earlier < later for earlier, later in pairwise(indices))
        if ascending and (depth == 0 or all(first)):
            break
    else:
        depth, first, indices = 0, [True] * len(names), list(range(len(names)))
    own, behind = iter(indices), count(indices[-1] + 1)
    numbers = [next(own) if is_first else next(behind) for is_first in first]
    return [
        Part(number, name, modules[name], _layer_around(modules, name, each[depth:]))
        for number, name, each in zip(numbers, names, places, strict=True)
    ]


def _blocks(modules: dict[str, nn.Module], parts: list[Part]) -> tuple[nn.Module, ...]:
    """The elements of the list in which each attention layer has its number for its place; empty without one."""
    places = [_places_in_lists(modules, part.name) for part in parts]
    for path, _ in places[0]:
        is_inside = all((path, part.number) in each for part, each in zip(parts, places, strict=True))
        if is_inside and not all(f"{path}.{part.number}" == part.name for part in parts):  # a list of attentions alone
            blocks = tuple(cast(nn.ModuleList, modules[path]))
            return blocks if len({*blocks}) == len(blocks) else ()  # one that is there twice has no one number
    return ()


def _places_in_lists(modules: dict[str, nn.Module], name: str) -> list[tuple[str, int]]:
    """The lists of modules on the way to a module, by path, and the places in them, the innermost list first."""
    steps = name.split(".")
    lists = [(".".join(steps[:end]), steps[end]) for end in range(len(steps) - 1, 0, -1)]
    return [(path, int(at)) for path, at in lists if isinstance(modules[path], (nn.ModuleList, nn.Sequential))]


def _layer_around(modules: dict[str, nn.Module], name: str, places: list[tuple[str, int]]) -> nn.Module | None:
    """The innermost element of some lists that holds a module beside others; None without one."""
    elements = (f"{path}.{at}" for path, at in places)
    return next((modules[element] for element in elements if element != name), None)


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
