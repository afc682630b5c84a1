"""From measurements of layers and forward passes to one record.

Every row of a batch is a sequence of its own. Measurements of later forward passes over the same sequences (a filled
cache, token by token) are joined to the earlier ones; a forward pass that raises leaves no trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinkscope.attention.layer import Layer
from sinkscope.attention.placement import is_built_in
from sinkscope.errors import SinkscopeError, warn
from sinkscope.probes import HiddenProbe, LayerProbe, Measured, Probe, Received, TileProbe
from sinkscope.probes.base import PER_QUERY
from sinkscope.scope.declarations import check_coordinates, check_declared, check_kind, declared

FOLLOWING = ("query", "token", "map_query")  # dimensions along which a later forward pass continues
OWN_PAGES = 32 << 20  # bytes from which malloc gives an array pages of its own instead of a place on the heap


def checked_probes(probes: Iterable[Probe], layers: Sequence[int]) -> tuple[Probe, ...]:
    """The probes: all of them of a known kind, none twice, none asking for a layer that is not there."""
    given = tuple(probes) if isinstance(probes, Iterable) else (probes,)
    makers: dict[str, Probe] = {}
    for probe in given:
        kind = type(probe).__name__
        if not isinstance(probe, Probe):
            raise SinkscopeError(f"{probe!r} is not a probe; give instances such as sinkscope.SinkMass(first=4).")
        if not isinstance(probe, (LayerProbe, TileProbe, HiddenProbe)):
            raise SinkscopeError(
                f"{kind} is a probe of no kind, so it would look at nothing; derive it from sinkscope.LayerProbe, "
                "TileProbe or HiddenProbe."
            )
        check_kind(probe)
        check_declared(probe)
        for name in probe.makes:
            other = makers.setdefault(name, probe)
            if other is not probe and type(other) is type(probe):
                raise SinkscopeError(
                    f"{kind} is given twice, as {other!r} and {probe!r}, and both would write `{name}`; give one of "
                    "them."
                )
            if other is not probe:
                raise SinkscopeError(
                    f"{kind} and {type(other).__name__} both make `{name}`; give one of them, or another name."
                )
        probe.check(layers)
    check_coordinates(given)
    return given


def measure_layer(probes: Sequence[Probe], number: int, layer: Layer) -> dict[str, Measured]:
    """All that the probes measure in one layer; those that read every probability share one pass."""
    measured: dict[str, Measured] = {}
    wanting = [probe for probe in probes if probe.wants(number)]
    states = tuple(vars(layer).values())
    sizes = dict(zip(PER_QUERY, layer.lse.shape, strict=True)) | {"token": layer.rows, "key": layer.reach}
    if layer.key is not None:
        sizes["kv_head"] = layer.key.shape[1]
    totals: list[tuple[TileProbe, Any]] = []
    for probe in wanting:
        if isinstance(probe, TileProbe):
            with unchanged(probe, *states, sums=states):
                found = probe.at_once(layer)
                if found is None:
                    totals.append((probe, _started(probe, layer)))
            measured |= {} if found is None else declared(probe, found, sizes)
    if totals:
        for tile in layer.tiles():
            for probe, total in totals:
                parts = (tile.padded, tile.log_probabilities)
                with unchanged(probe, *states, *parts, sums=parts):
                    added: Any = probe.add(total, layer, tile)
                if added is not None:
                    raise SinkscopeError(
                        f"`add` of {type(probe).__name__} gave a {type(added).__name__}, which nobody takes; let it "
                        "change the sum in place, as in total += ..., and return nothing."
                    )
    for probe, total in totals:
        with unchanged(probe, *states, sums=states):
            finished = probe.finish(total, layer)
        measured |= declared(probe, finished, sizes)
        if type(probe) is Received:
            layer = replace(layer, received=total)
            states = (*states, total)
    for probe in wanting:
        if isinstance(probe, LayerProbe):
            with unchanged(probe, *states, sums=states):
                observed = probe.observe(layer)
            measured |= declared(probe, observed, sizes)
    return {name: measured[name] for probe in wanting for name in probe.makes if name in measured}


def _started(probe: TileProbe, layer: Layer) -> Any:
    """The sum that a probe begins with; SinkscopeError for one that cannot be changed in place."""
    total: Any = probe.start(layer)
    if total is None or isinstance(total, (int, float, complex, str, bytes, np.generic)):
        raise SinkscopeError(
            f"`start` of {type(probe).__name__} gave {total!r}, which `add` cannot change in place; give a tensor."
        )
    return total


def measure_hidden(probe: HiddenProbe, before: Tensor | None, hidden: Tensor) -> dict[str, Measured]:
    """What a probe measures of the hidden states [sequence, token, dim] before one layer, if known, and behind it."""
    with unchanged(probe, before, hidden, sums=[before, hidden]):
        observed = probe.observe_layer(before, hidden)
    sequences, tokens, _ = hidden.shape
    return declared(probe, observed, {"sequence": sequences, "token": tokens, "query": tokens})


class unchanged:
    """Raise SinkscopeError when probes change some of the model's own states, or a tile, in place.

    Outside inference mode, where probes look, torch itself refuses that for tensors made in it. What NumPy writes
    raises no version of a tensor, so behind probes of the user's own the `sums` of states have to be the same, too.
    """

    def __init__(self, probe: Probe, *states: Any, sums: Sequence[Any] = ()) -> None:
        self.probe = probe
        self.watched = [each for each in states if isinstance(each, Tensor) and not each.is_inference()]
        self.summed = [each for each in sums if isinstance(each, Tensor) and not is_built_in(type(probe))]

    def _versions(self) -> list[Any]:
        return [*(each._version for each in self.watched), *map(_sums, self.summed)]

    def __enter__(self) -> None:
        self.before = self._versions()

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        refused = isinstance(problem, RuntimeError) and "Inplace update to inference tensor" in str(problem)
        if refused or (problem is None and self.before != self._versions()):
            raise SinkscopeError(
                f"{type(self.probe).__name__} changed the model's own states in place, or its attention, and so what "
                "the model goes on with and other probes see; work on a copy of them."
            ) from problem


def _sums(states: Tensor) -> bytes:
    """Sums of some states by each of their last two dimensions, bit by bit."""
    every = range(states.dim())
    kept = [states.sum([each for each in every if each != one], dtype=torch.float64) for one in every[-2:]]
    return torch.cat([each.flatten() for each in kept]).cpu().numpy().tobytes()


Coords = Mapping[str, np.ndarray]


@dataclass(eq=False)
class Text:
    """One sequence on its way through the model."""

    start: int  # position of the first token measured
    token_ids: list[np.ndarray] = field(default_factory=list)  # measured so far, -1 for what came as embeddings
    tokens: int = 0  # how many were measured so far
    seen: dict[int, np.ndarray] = field(default_factory=dict)  # by first query: keys that each query sees, if counted
    keys: int | None = None  # how many of another model's states it looks at
    number: int | None = None  # its place in the record, once a forward pass over it has finished


class Staged(NamedTuple):
    """One variable of the forward pass under way.

    Of the `layers` measured so far `values` holds arrays [text, ...]. Small ones share one `room`, made once: what is
    allocated layer by layer and stays pins a hole in the heap that the next layer's activations no longer fit into.
    """

    coords: Coords
    texts: list[Text]
    layers: list[int]
    room: np.ndarray | list[np.ndarray]
    values: list[np.ndarray]


class Collector:
    """Gathers measurements of attention layers by their numbers, some `expected` layers, and makes the record."""

    def __init__(self, expected: int, probes: Sequence[Probe]) -> None:
        self.expected = expected
        self.layers: list[int] = []  # that ran in a forward pass that finished
        self.attending: set[int] = set()  # those whose attention was seen
        self.makes = {name: variable for probe in probes for name, variable in probe.makes.items()}
        self._foreign = {name: probe for probe in probes for name in probe.makes if not is_built_in(type(probe))}
        self.texts: list[Text] = []
        self.coords: dict[str, Coords] = {}  # of each variable measured
        self.pieces: dict[str, dict[tuple[int, int], list[np.ndarray]]] = defaultdict(dict)  # by name; by text, layer
        self.sums: dict[str, dict[int, tuple[Any, Any]]] = defaultdict(dict)  # by name; by layer
        self.committed: list[tuple[str, Staged]] | None = None  # where a list, each is added to it
        self._staged: dict[tuple[Any, ...], Staged] = {}
        self._kinds: dict[str, str] = {}  # of numbers, whole or not, by variable
        self._running: dict[int, bool] = {}  # whether their attention was seen

    def numbers(self, texts: Iterable[Text], among: list[Text]) -> tuple[int, ...]:
        """The places in the record of some texts of the forward pass under way, which is `among` these."""
        new = {id(text): place for place, text in enumerate(text for text in among if text.number is None)}
        known = len(self.texts)
        return tuple(known + new[id(text)] if text.number is None else text.number for text in texts)

    def stage(self, measured: Iterable[tuple[str, Staged]], attending: Iterable[int]) -> None:
        """Stage what was staged in an earlier run, in its order, and the layers whose attention was seen there."""
        for name, staged in measured:
            self._staged[name, id(staged.texts[0]), staged.values[0].shape] = staged
            for layer in staged.layers:
                self._runs(layer, attends=False)
        for layer in attending:
            self._runs(layer, attends=True)

    def _runs(self, layer: int, attends: bool) -> None:
        self._running[layer] = attends or self._running.get(layer, False)

    def add(self, layer: int, texts: list[Text], measurements: Mapping[str, Measured], *, attends: bool = True) -> None:
        """Stage what was measured in one layer for some texts, of its attention or of what it hands on."""
        self._runs(layer, attends)
        for name, measured in measurements.items():
            values = _numpy(measured.values)
            if self._kinds.setdefault(name, values.dtype.kind) != values.dtype.kind:
                raise SinkscopeError(
                    f"`{name}` is made of whole numbers in one place and of others in another; give one kind "
                    "everywhere, such as float32."
                )
            key = (name, id(texts[0]), values.shape)
            if key not in self._staged:
                small = values.nbytes < OWN_PAGES
                room: Any = np.empty((self.expected, *values.shape), values.dtype) if small else []
                self._staged[key] = Staged(measured.coords, texts, [], room, [])
            staged = self._staged[key]
            if measured.coords:
                coords = _joint(name, staged.coords, measured.coords)
                staged = self._staged[key] = staged._replace(coords=coords)
            place = len(staged.layers)
            if place < len(staged.room):
                staged.room[place] = values
                values = staged.room[place]
            staged.values.append(values)
            staged.layers.append(layer)

    def discard(self) -> None:
        """Forget a forward pass that did not finish."""
        self._staged.clear()
        self._running.clear()

    def check(self) -> None:
        """Raise SinkscopeError when the staged forward pass does not fit what was kept before."""
        coords = dict(self.coords)
        for (name, *_), staged in self._staged.items():
            coords[name] = _joint(name, coords.get(name, staged.coords), staged.coords)
        self._check_averaged()
        self._check_followed()
        self.coords = coords

    def _check_followed(self) -> None:
        """Raise SinkscopeError when the staged forward pass goes on with a text that was measured as a whole."""
        for (name, *_), staged in self._staged.items():
            variable, known = self.makes[name], [text.number for text in staged.texts if text.number is not None]
            if variable.averaged or variable.summed or set(variable.dims) & set(FOLLOWING):
                continue
            if any((number, layer) in self.pieces[name] for number in known for layer in staged.layers):
                raise SinkscopeError(
                    f"`{name}` [{', '.join(variable.dims)}] has nothing along which it goes on, and this forward pass "
                    "goes on with a text; read each text in one pass, as in model(ids), or declare the variable with "
                    "summed=True, if its numbers are sums over the queries."
                )

    def _check_averaged(self) -> None:
        """Raise SinkscopeError when the staged forward pass does not fit what is averaged already."""
        shapes: dict[tuple[str, int], set[tuple[int, ...]]] = defaultdict(set)
        for (name, *_), staged in self._staged.items():
            if not self.makes[name].averaged:
                continue
            for layer, values in zip(staged.layers, staged.values, strict=True):
                total, _ = self.sums[name].get(layer, (values[0], 0))
                shapes[name, layer] |= {values.shape[1:], np.shape(total)}
            follows = set(self.makes[name].dims) & set(FOLLOWING) and any(
                text.number is not None for text in staged.texts
            )
            if follows or any(len(found) > 1 for (other, _), found in shapes.items() if other == name):
                raise SinkscopeError(
                    f"`{name}` is averaged over sequences, which are not of one length or not read in one forward pass "
                    "each; give texts of one length, or declare the variable without averaged=True."
                )

    def commit(self, texts: list[Text]) -> None:
        """Keep a forward pass over these texts that finished and was checked."""
        for text in texts:
            if text.number is None:
                text.number = len(self.texts)
                self.texts.append(text)
        self.layers = sorted({*self.layers, *self._running})
        self.attending |= {layer for layer, attends in self._running.items() if attends}
        for (name, *_), staged in self._staged.items():
            if self.committed is not None:
                self.committed.append((name, staged))
            for layer, values in zip(staged.layers, staged.values, strict=True):
                if self.makes[name].averaged:
                    total, count = self.sums[name].get(layer, (0.0, 0))
                    self.sums[name][layer] = (total + np.nansum(values, 0), count + np.isfinite(values).sum(0))
                    continue
                for text, value in zip(staged.texts, values, strict=True):
                    assert text.number is not None
                    self.pieces[name].setdefault((text.number, layer), []).append(value)
        self.discard()

    def variable(self, name: str) -> xr.DataArray:
        """One variable as an array [sequence, layer, ...] over the layers it was measured in."""
        if self.makes[name].averaged:
            means = {
                (0, layer): np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
                for layer, (total, count) in self.sums[name].items()
            }
            return self._stack(name, means, sequences=1)[0].drop_vars("sequence")
        joined = {place: _join(chunks, self.makes[name].dims[1:]) for place, chunks in self.pieces[name].items()}
        return self._stack(name, joined, sequences=len(self.texts))

    def _stack(self, name: str, arrays: dict[tuple[int, int], np.ndarray], sequences: int) -> xr.DataArray:
        dims = self.makes[name].dims[1:]
        layers = sorted({layer for _, layer in arrays})
        spans = {}
        for (sequence, layer), array in arrays.items():
            starts = [self.texts[sequence].start if dim in FOLLOWING else 0 for dim in dims]
            spans[sequence, layer] = tuple(slice(at, at + size) for at, size in zip(starts, array.shape, strict=True))
        sizes = [max(span[axis].stop for span in spans.values()) for axis in range(len(dims))]
        kind = next(iter(arrays.values())).dtype
        stacked = np.full((sequences, len(layers), *sizes), np.nan if kind.kind == "f" else -1, dtype=kind)
        for (sequence, layer), span in spans.items():
            place: Any = (sequence, layers.index(layer), *span)
            stacked[place] = arrays[sequence, layer]
        coords = {dim: np.arange(size) for dim, size in zip(dims, sizes, strict=True)} | dict(self.coords[name])
        coords |= {"sequence": np.arange(sequences), "layer": np.asarray(layers)}
        return xr.DataArray(stacked, dims=("sequence", "layer", *dims), coords=coords)

    def record(self) -> xr.Dataset:
        """All that was measured, over all layers that ran."""
        if not self.texts:
            raise SinkscopeError("nothing was measured: no forward pass of the model finished while the scope was on.")
        for name in self._foreign.keys() - self.coords.keys():
            warn(f"{type(self._foreign[name]).__name__} declares `{name}` and gave it nowhere, so the record has none.")
        arrays = [self.variable(name).rename(name) for name in self.coords]
        missing = {array.name: np.nan if array.dtype.kind == "f" else -1 for array in arrays}
        record = xr.merge(arrays, join="outer", fill_value=missing, compat="no_conflicts")
        if record.sizes.get("layer", len(self.layers)) != len(self.layers):
            record = record.reindex(layer=self.layers, fill_value=missing)
        if any(row.seen for row in self.texts):
            seen = np.full((len(self.texts), max(row.start + row.tokens for row in self.texts)), np.nan)
            for number, row in enumerate(self.texts):
                for start, counts in row.seen.items():
                    seen[number, start : start + len(counts)] = counts
            record = record.assign_coords(keys_seen=(("sequence", "query"), seen))
        if any(row.keys is not None for row in self.texts):
            record = record.assign_coords(key_length=("sequence", [row.keys for row in self.texts]))
        lengths = [row.start + row.tokens for row in self.texts]
        if any((ids >= 0).any() for row in self.texts for ids in row.token_ids):
            tokens = np.full((len(lengths), max(lengths)), -1, dtype=np.int64)
            for line, row in enumerate(self.texts):
                tokens[line, row.start : row.start + row.tokens] = np.concatenate(row.token_ids)
            record = record.assign_coords(token_id=(("sequence", "token"), tokens))
        return record.assign_coords(
            sequence=np.arange(len(lengths)), length=("sequence", lengths), token=np.arange(max(lengths))
        )


def _joint(name: str, known: Coords, new: Coords) -> Coords:
    """Coordinates that hold for both; layers may have more and fewer heads, and texts tokens that are cells each."""
    joint = dict(known)
    for dim, at in new.items():
        counted = dim == "head" or all(np.array_equal(each, np.arange(len(each))) for each in (known[dim], at))
        shared = min(len(known[dim]), len(at)) if counted else None
        if not np.array_equal(known[dim][:shared], at[:shared]):
            raise SinkscopeError(
                f"`{name}` has other cells or heads than before; pooled maps need texts of one length."
            )
        joint[dim] = max(known[dim], at, key=len)
    return joint


def _numpy(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    if values.is_floating_point():
        return values.float().numpy()
    return values.int().numpy()


def _join(chunks: list[np.ndarray], dims: tuple[str, ...]) -> np.ndarray:
    """The pieces of one sequence as one: queries follow each other, sums over queries add up."""
    if len(chunks) == 1 or not dims:
        return sum(chunks[1:], chunks[0])
    along = next((axis for axis, dim in enumerate(dims) if dim in FOLLOWING), None)
    widest = [max(sizes) for sizes in zip(*(chunk.shape for chunk in chunks), strict=True)]
    padded = [
        np.pad(chunk, [(0, 0 if axis == along else widest[axis] - size) for axis, size in enumerate(chunk.shape)])
        for chunk in chunks
    ]
    return sum(padded[1:], padded[0]) if along is None else np.concatenate(padded, along)
