"""The shapes behind a model's cost, found by running it on one and two tokens, not looked up by name.

One forward of q tokens over k cached and new keys does, in an attention layer,

    F(q, k) = once  +  projections · q  +  pair · q · k  +  key · k

floating-point operations: the products of every query with every key and value, and, where latents are cached
(multi-head latent attention), the making of all keys and values from them; and what some adapters make of their own
weights anew. F(1, 1), F(2, 3), F(2, 2) and F(1, 3) give the four. They are counted by torch's own formulas: two for
each multiply-add of a matrix product, nothing for the rest. So experts count when they are active, and only then. A
layer whose products torch knows no formula of, as where weights are whole numbers, counts by its sizes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.attention import expert_implementation, implementation
from sinkscope.hf.caches import growing_cache, held_states, with_cache
from sinkscope.hf.models import query_heads
from sinkscope.hf.placement import reading_device
from sinkscope.models.cached import find_layout
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import Anatomy, find_anatomy
from sinkscope.models.requirements import check_decoder, check_unchunked, check_unscoped, not_a_decoder
from sinkscope.models.weights import settings
from sinkscope.undo import Undo

Flops = dict[str, int]  # by path of the module; "" is the model


@dataclass(frozen=True)
class LayerShape:
    """One attention layer.

    Attributes:
        heads: query heads.
        kv_heads: heads of keys and values in the cache.
        key_dim, value_dim: numbers in one head's "keys" and "values" slot of the cache. For latent attention the slots
            hold the latent and the shared rotated key, with one head.
        itemsize: bytes of one cached number.
        window: the model's own sliding window in tokens, the token being read included; None for a full layer.
        flops_per_pair: of one query with one key and its value, all heads: 2 · heads · (key dim + value dim).
        flops_per_key: to make one key and value anew from its latent, in every forward pass; 0 where they are cached.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    itemsize: int
    window: int | None
    flops_per_pair: int
    flops_per_key: int

    @property
    def kv_bytes(self) -> int:
        """Bytes that one token takes in the cache."""
        return self.kv_heads * (self.key_dim + self.value_dim) * self.itemsize

    @property
    def kv_bytes_mha(self) -> int:
        """The same if every query head had its own keys and values (multi-head attention)."""
        return self.flops_per_pair // 2 * self.itemsize

    @property
    def kv_bytes_mqa(self) -> int:
        """The same if all query heads shared one key and value (multi-query attention)."""
        return self.kv_bytes_mha // self.heads


@dataclass(frozen=True)
class Shapes:
    """A model as far as its cost goes.

    Attributes:
        layers: the attention layers, in order.
        body_flops: per token, of everything below the output head but what grows with the text: projections,
            feed-forward layers, active experts.
        head_flops: per forward pass, of the output head for one token; 0 for a model without one.
        once_flops: per forward pass, whatever it reads: what adapters make of their weights anew.
    """

    layers: tuple[LayerShape, ...]
    body_flops: int
    head_flops: int
    once_flops: int = 0


_FOUND: WeakKeyDictionary[nn.Module, tuple[Any, Shapes]] = WeakKeyDictionary()


def shapes_of(model: Any) -> Shapes:
    """The shapes of a loaded decoder, as it is now: dtype, attention implementation, expert implementation.

    They are found once for a model, and again when it has changed.

    Raises:
        SinkscopeError: a model without a cache of keys and values (encoders, vision), attention in chunks, a scope
            attached, or an attention kernel whose operations torch cannot count.
    """
    anatomy = find_anatomy(model)
    check_decoder(model)
    check_unchunked(model)
    check_unscoped(anatomy.base)
    state = (
        implementation(model),
        expert_implementation(model),
        tuple((type(module), repr(settings(module))) for module in model.modules()),
        tuple((parameter.shape, parameter.dtype) for parameter in model.parameters()),
    )
    if model not in _FOUND or _FOUND[model][0] != state:
        _FOUND[model] = (state, _find(model, anatomy))
    return _FOUND[model][1]


@uncompiled()
@torch.no_grad()
def _find(model: Any, anatomy: Anatomy) -> Shapes:
    layout, owners = find_layout(model), [place for places in find_layout(model).reads for place in places]
    if layout.foreign:
        raise SinkscopeError(f"{type(model).__name__} {layout.foreign}, so what it costs cannot be told.")
    if len(set(owners)) < len(owners) or any(len(places) > 1 for places in layout.reads):
        raise SinkscopeError(
            f"{type(model).__name__} has attention layers that share keys or run several times in one forward pass, "
            "and a cost is counted for layers that each keep keys of their own."
        )
    base = next(name for name, module in model.named_modules() if module is anatomy.base)
    names = ["", base, *(part.name for part in anatomy.parts)]
    cache, other = growing_cache(model), growing_cache(model)
    first, three = _count(model, names, 1, cache), _count(model, names, 2, cache)
    both, third = _count(model, names, 2, other), _count(model, names, 1, other)
    layers = []
    for part, places in zip(anatomy.parts, layout.reads, strict=True):
        if not places:  # no attention over keys
            continue
        window, held = layout.windows[places[0]], held_states(cache, places[0])
        if len(held) < 2:
            raise not_a_decoder(type(model).__name__, "keeps no keys in its cache in some layers")
        more = (third[part.name] - first[part.name]) // 2  # of one key more: pair + key
        pair = three[part.name] - both[part.name] - more
        key = more - pair
        if pair <= 0:
            raise SinkscopeError(
                f"{type(model).__name__} computes attention with {implementation(model)!r}, whose operations torch "
                'does not count; call model.set_attn_implementation("sdpa") first.'
            )
        _, kv_heads, _, key_dim = held["keys"].shape
        value_dim, itemsize = held["values"].shape[-1], held["keys"].itemsize
        heads = (query_heads(model) or 0) if key else pair // 2 // (key_dim + value_dim)
        layers.append(LayerShape(heads, kv_heads, key_dim, value_dim, itemsize, window, pair, key))
    pairs, keys = sum(layer.flops_per_pair for layer in layers), sum(layer.flops_per_key for layer in layers)
    # F(2, 2) - F(1, 1) of the whole body is projections + 3 · pair + key
    body = both[base] - first[base] - 3 * pairs - keys
    once = first[base] - body - pairs - keys
    return Shapes(tuple(layers), body, head_flops=first[""] - first[base], once_flops=once)


class _FlopCounter(TorchDispatchMode):
    """Counts the operations of this thread, by the modules they happen in.

    torch's own `FlopCounterMode` hangs hooks on the modules of the whole process, and so counts other threads' too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.inside: Flops = {}
        self._formulas = flop_registry | _formulas()
        self._thread = threading.get_ident()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, self._formulas.get(func._overloadpacket)
        if formula is None:
            with self:  # an operation made of others is counted by those
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result

    def watch(self, module: nn.Module, name: str, undo: Undo) -> None:
        """Count what happens inside a module under a name, until `undo` is closed."""
        begun: list[int] = []

        def before(*_: Any) -> None:
            if threading.get_ident() == self._thread:
                begun.append(self.total)

        def after(*_: Any) -> None:
            if threading.get_ident() == self._thread:
                self.inside[name] = self.inside.get(name, 0) + self.total - begun.pop()

        undo.hang(module, before, before=True, prepend=True)
        undo.hang(module, after)

    def weigh(self, layer: Any, undo: Undo) -> None:
        """Count a linear layer by its sizes where none of its operations has a formula, until `undo` is closed."""
        begun: list[int] = []

        def before(*_: Any) -> None:
            if threading.get_ident() == self._thread:
                begun.append(self.total)

        def after(_: Any, args: Any, output: Any) -> None:
            if threading.get_ident() == self._thread and self.total == begun.pop() and isinstance(output, torch.Tensor):
                self.total += 2 * layer.in_features * output.numel()

        undo.hang(layer, before, before=True)
        undo.hang(layer, after, prepend=True)


def _count(model: nn.Module, names: list[str], tokens: int, cache: Any) -> Flops:
    """Floating-point operations of a forward pass over `tokens` new tokens, by path of the module."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=reading_device(model))
    with Undo() as undo:
        counter = _FlopCounter()
        for name in dict.fromkeys(names):
            counter.watch(model.get_submodule(name), name, undo)
        for module in model.modules():
            if {"in_features", "out_features"} <= vars(module).keys():
                counter.weigh(module, undo)
        try:
            with counter:
                model(input_ids=ids, **with_cache(model, cache))
        except RuntimeError as problem:  # of anybody's code
            raise SinkscopeError(
                f"{type(model).__name__} does not read on from its own cache ({first_line(problem)}), so what it costs "
                "cannot be told."
            ) from problem
    return dict.fromkeys(names, 0) | counter.inside


def _formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for products that torch's counter does not know: attention on the CPU and Apple chips, and experts."""
    known = [
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", _attention_flops),
        (torch.ops.aten, "_scaled_dot_product_attention_math_for_mps", _attention_flops),
        (torch.ops.aten, "_grouped_mm", _grouped_flops),
        (torch.ops.transformers, "grouped_mm_fallback", _grouped_flops),
    ]
    return {getattr(library, name): formula for library, name, formula in known if hasattr(library, name)}


@shape_wrapper
def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


@shape_wrapper
def _grouped_flops(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Rows [row, dim] times the weight [expert, dim, out] of the expert each belongs to."""
    return int(2 * rows[0] * rows[1] * weight[-1])
