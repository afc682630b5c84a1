"""Rotary geometry: how keys turn with position, found by looking at what a model caches, and turning them further.

Families differ in which dimensions they rotate, how they pair them, how they scale the frequencies and where they do
it. Instead of a table of families, a few tokens are run alone at chosen positions. A token alone attends to itself
only, so its cached key depends on its position through the rotation and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.caches import growing_cache, held_states, with_cache
from sinkscope.hf.models import position_limits, rope_parameters, vocabulary_size
from sinkscope.hf.placement import reading_device
from sinkscope.models.cached import find_layout, look_at, takes_positions
from sinkscope.models.compiled import uncompiled
from sinkscope.models.facts import find_anatomy
from sinkscope.models.requirements import check_decoder, check_eval, check_unscoped, not_a_decoder
from sinkscope.undo import Undo


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary geometry of one layer (Su et al. 2021): pairs of dimensions turn by position times frequency."""

    slot: str  # the cached state that turns, "keys" or "values": latent attention (MLA) keeps its rotated part there
    low: int  # the dimensions that turn
    high: int
    interleaved: bool  # whether neighbours form a pair, rather than dimensions half the width apart
    frequencies: Tensor  # [pair], radians per position, float64

    def turned(self, states: Tensor, by: Tensor | int) -> Tensor:
        """States [batch, head, token, dim], rotated already, moved along the text by so many positions.

        These are one number, [token] or [batch, token]; angles are formed in float64.
        """
        return self.turned_by(states, *self.angles(torch.as_tensor(by, device=states.device), states.dtype))

    def angles(self, by: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of turning states of a dtype by so many positions, as `turned_by` takes them."""
        delta = torch.atleast_1d(by).double()
        angles = delta[..., None] * self.frequencies.to(delta.device)
        if delta.dim() == 2:
            angles = angles[:, None]
        wide = torch.promote_types(dtype, torch.float32)
        return angles.cos().to(wide), angles.sin().to(wide)

    def turned_by(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        first, second = self.pairs(states.to(cosine.dtype))
        turned = (
            torch.addcmul(first * cosine, second, sine, value=-1),
            torch.addcmul(second * cosine, first, sine),
        )
        moved = torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)
        if moved.shape[-1] == states.shape[-1]:
            return moved.to(states.dtype)
        return torch.cat([states[..., : self.low], moved.to(states.dtype), states[..., self.high :]], -1)

    def pairs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The two members of every pair: [..., pair] each."""
        rotary = states[..., self.low : self.high]
        if self.interleaved:
            return rotary[..., 0::2], rotary[..., 1::2]
        first, second = rotary.chunk(2, -1)
        return first, second

    def is_like(self, other: Rotation) -> bool:
        layouts = {
            (each.slot, each.low, each.high, each.interleaved, each.frequencies.device) for each in (self, other)
        }
        return len(layouts) == 1 and torch.equal(self.frequencies, other.frequencies)

    def of_query(self, dim: int) -> Rotation:
        """The geometry of the layer's queries of width `dim`: latent attention rotates their last dimensions."""
        if self.slot == "keys":
            return self
        return replace(self, slot="keys", low=dim - (self.high - self.low), high=dim)


TOKENS = 6  # tokens looked at, each alone
ROTARY_TABLE = "embed_positions"  # what GPT-J and CodeGen call theirs
FARTHEST = 1 << 8  # position probed; frequencies are right to float precision over it

_FOUND: WeakKeyDictionary[nn.Module, tuple[torch.dtype, dict[int, Rotation | None]]] = WeakKeyDictionary()


def find_rotations(model: nn.Module) -> list[Rotation | None]:
    """The rotary geometry of each attention layer; None where keys do not depend on position (ALiBi, no positions)."""
    rotations = cache_rotations(model)
    return [rotations[places[0]] if places else None for places in find_layout(model).reads]


def cache_rotations(model: nn.Module) -> dict[int, Rotation | None]:
    """The same for each layer of the model's cache that holds keys, by its place in the cache."""
    base = find_anatomy(model).base
    dtype = _float_type(base)
    if base not in _FOUND or _FOUND[base][0] != dtype:
        check_decoder(model)
        check_eval(base, "its keys")
        check_unscoped(base)
        _FOUND[base] = (dtype, _look(base, type(model).__name__, list(find_layout(model).windows)))
    return _FOUND[base][1]


def _float_type(base: nn.Module) -> torch.dtype:
    """The coarsest floating type that a model computes in, where layers differ; quantised weights have one byte."""
    types = {each.dtype for each in base.parameters() if each.is_floating_point() and each.itemsize > 1}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.get_default_dtype())


def position_limit(model: Any) -> int | None:
    """Positions the model was made for, or None; where its rotation changes with length, those before the change."""
    limits = position_limits(model)
    if changes_with_length(model) and (limit := rope_parameters(model).get("original_max_position_embeddings")):
        limits.append(limit)
    return min(limits, default=None)


def position_ceiling(model: Any) -> int | None:
    """Positions from which on a model fails (its rotary table ends) or rotates otherwise; None without such a limit."""
    base = find_anatomy(model).base
    ends = [len(table) for name, table in base.named_buffers() if ROTARY_TABLE in name and table.dim() == 2]
    if changes_with_length(model) and (limit := position_limit(model)):
        ends.append(limit)
    return min(ends, default=None)


def changes_with_length(model: Any) -> bool:
    """Whether the frequencies themselves depend on how long the text is (dynamic and longrope scaling)."""
    return rope_parameters(model).get("rope_type") in ("dynamic", "longrope")


@uncompiled()
@torch.no_grad()
def _look(base: Any, name: str, places: list[int]) -> dict[int, Rotation | None]:
    limit = position_limit(base) or 2 * FARTHEST
    positions = [0] + [1 << power for power in range(int(math.log2(min(FARTHEST, max(2, limit // 2)))) + 1)]
    generator = torch.Generator().manual_seed(0)
    vocabulary = vocabulary_size(base)
    tokens = torch.randint(min(3, vocabulary - 1), vocabulary, (TOKENS, 1), generator=generator).to(
        reading_device(base)
    )
    if not takes_positions(base):
        _check_stays(base, tokens, places[0], name)
        positions = [0]
    cached = {position: _cached(base, tokens, position, places) for position in positions}
    rotations: dict[int, Rotation | None] = {}
    for place in places:
        if any(len(cached[at][place]) < 2 for at in positions):
            raise not_a_decoder(name, "keeps no keys in its cache in some layers")
        seen = {slot: {at: cached[at][place][slot] for at in positions} for slot in ("keys", "values")}
        found = _fitted(seen["keys"], "keys", base, name) or _fitted(seen["values"], "values", base, name)
        known = [each for each in rotations.values() if each and found and each.is_like(found)]
        rotations[place] = known[0] if known else found
    return rotations


def _cached(base: Any, tokens: Tensor, position: int, places: list[int]) -> dict[int, dict[str, Tensor]]:
    """What the layers of a cache hold of tokens alone at a position: keys and values [token, head, 1, dim]."""
    cache = growing_cache(base)
    given = {"position_ids": torch.full_like(tokens, position)} if takes_positions(base) else {}
    base(tokens, **with_cache(base, cache), **given)
    held = {place: held_states(cache, place) for place in places}
    return {place: {slot: each.double() for slot, each in states.items()} for place, states in held.items()}


def _check_stays(base: Any, tokens: Tensor, place: int, name: str) -> None:
    """Refuse a model whose positions cannot be chosen, and whose keys follow them: those at 0 and 1 are compared."""
    cache = growing_cache(base)
    base(tokens.expand(-1, 2), **with_cache(base, cache))
    first, second = held_states(cache, place)["keys"].double().unbind(2)
    if bool(_moved(first[:, :, None], second[:, :, None], base).any()):
        raise SinkscopeError(
            f"{name} counts the positions of its tokens by itself (its forward takes no position_ids) and its keys "
            "follow them, so a cached key cannot be moved to another place; it can be read densely, but not streamed."
        )


def _moved(one: Tensor, other: Tensor, base: Any) -> Tensor:
    """In which dimensions [dim] two states [.., .., .., dim] differ by more than rounding."""
    precision = torch.finfo(_float_type(base)).eps
    return (other - one).abs().amax((0, 1, 2)) / one.abs().max() > max(1e-6, 2 * precision)


def _fitted(seen: dict[int, Tensor], slot: str, base: Any, name: str) -> Rotation | None:
    """The rotation that explains the cached states by position, or None when they do not depend on it."""
    still, precision = seen[0], torch.finfo(_float_type(base)).eps
    moving = torch.stack([_moved(still, states, base) for states in seen.values()]).any(0).nonzero().flatten().tolist()
    if not moving:
        return None
    dim = still.shape[-1]
    low, high = moving[0], moving[-1] + 1
    fits = [
        _with_frequencies(Rotation(slot, start, stop, interleaved, torch.empty(0)), seen, base, precision)
        for start, stop in {(low, high), (0, high), (low, dim), (0, dim)}  # the slowest pairs may hardly have moved
        for interleaved in (False, True)
        if (stop - start) % 2 == 0
    ]
    best = min(fits, key=lambda fit: (fit[0], fit[1].high - fit[1].low), default=None)
    if best is None or not best[0] < max(1e-3, 16 * precision):
        raise _absolute(name)
    return best[1]


def _with_frequencies(guess: Rotation, seen: dict[int, Tensor], base: Any, precision: float) -> tuple[float, Rotation]:
    """A rotation with its frequencies, and its relative error on the states seen.

    The angle at position 1 is the frequency; each further position is twice as far and halves the error.
    """
    as_complex: Callable[[Tensor], Tensor] = lambda states: torch.complex(*guess.pairs(states))  # noqa: E731
    still = as_complex(seen[0]).conj()
    frequencies = torch.zeros(still.shape[-1], dtype=torch.float64, device=still.device)
    positions = sorted(seen)[1:]
    for position in positions:
        angle = torch.angle((as_complex(seen[position]) * still).sum((0, 1, 2)))
        ahead = torch.remainder(angle - frequencies * position + math.pi, 2 * math.pi) - math.pi
        frequencies = frequencies + ahead / position
    rotation = replace(guess, frequencies=_snapped(frequencies, base, max(1e-6, 8 * precision / positions[-1])))
    worst = max(float((rotation.turned(seen[0], at) - seen[at]).abs().max()) for at in positions)
    return worst / float(seen[0].abs().max()), rotation


def _snapped(frequencies: Tensor, base: nn.Module, tolerance: float) -> Tensor:
    """The model's own table of frequencies where it has one like these: a fit in bfloat16 is good to few digits."""
    tables = [
        buffer[: len(frequencies)].double().to(frequencies.device)
        for name, buffer in base.named_buffers()
        if "inv_freq" in name and buffer is not None and buffer.dim() == 1 and len(buffer) >= len(frequencies)
    ]
    signed = [sign * table for table in tables for sign in (1, -1)]
    nearest = min(signed, key=lambda table: float((table - frequencies).abs().max()), default=frequencies)
    return nearest if float((nearest - frequencies).abs().max()) < tolerance else frequencies


def _absolute(name: str) -> SinkscopeError:
    return SinkscopeError(
        f"{name} has keys that depend on their position otherwise than by a rotation (learned absolute positions, "
        "sines, an adapter that sees positions), so a cached key cannot be moved to another place; it can be read "
        "densely up to its longest position, but not streamed."
    )


_SCALES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def scales_queries(model: nn.Module) -> bool:
    """Whether queries grow with their position, so that this has to be counted in the text and not in the cache."""
    anatomy = find_anatomy(model)
    if anatomy.base not in _SCALES:
        check_unscoped(anatomy.base)
        _SCALES[anatomy.base] = anatomy.interface and takes_positions(anatomy.base) and _grow(anatomy.base)
    return _SCALES[anatomy.base]


@uncompiled()
@torch.no_grad()
def _grow(base: Any) -> bool:
    """Whether the lengths of queries, each of a token alone, differ between positions."""
    far = min(position_ceiling(base) or 1 << 20, 1 << 20)
    positions = [0, *(1 << power for power in range(far.bit_length()) if 1 << power < far)]
    given = torch.tensor(positions, device=reading_device(base))[:, None]
    with Undo() as undo:
        look = look_at(base, undo)
        base(torch.zeros_like(given), position_ids=given, **with_cache(base, growing_cache(base)))
    if not look.calls:  # attention by a function of the layers' own
        return False
    lengths = torch.stack([call.query.double().flatten(1).norm(dim=1).cpu() for call in look.calls])
    change = (lengths - lengths[:, :1]).abs() / lengths[:, :1]
    return bool(change.max() > max(1e-3, 4 * torch.finfo(look.calls[0].query.dtype).eps))
