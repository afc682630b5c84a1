"""Losses against what the cache keeps: number of sinks, size, way of counting positions, what the sinks are, and any
other policy beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sinkscope.arguments import checks_types, one_of, one_or_several, whole_number
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.cells import Finished, Perplexity, RecordCell, Setting, identity_of
from sinkscope.experiments.intervention import line_break_token
from sinkscope.experiments.perplexity import Run, check_run, checked_policies, fitting_block, record_of
from sinkscope.experiments.runner import ModelSource, finished_cells
from sinkscope.files import writable_folder
from sinkscope.hf.models import input_embeddings
from sinkscope.models.facts import find_anatomy
from sinkscope.policies import POSITIONS, Policy, SinkWindow
from sinkscope.record import first_evicted
from sinkscope.scope.binding import check_limits
from sinkscope.scope.forward import check_vocabulary
from sinkscope.scope.measure import texts_of
from sinkscope.streaming.checkpoint import Progress

KINDS = ("first", "line breaks", "random")


class Level(NamedTuple):
    """One combination of the factors, or a policy beside them, whose kind is empty."""

    cache_size: int
    kind: str
    positions: str
    sinks: int
    policy: Policy

    @property
    def name(self) -> str:
        """One of its own among cells that differ."""
        return self.policy.name if self.kind in ("", "first") else f"{self.policy.name}, {self.kind}"


@checks_types
def run_ablation(
    model: nn.Module | str | os.PathLike[str] | None,
    ids: Tensor | Sequence[Tensor],
    sinks: int | Iterable[int] = (0, 1, 2, 4, 8),
    cache_size: int | Iterable[int] = 1024,
    positions: str | Iterable[str] = "cache",
    kinds: str | Iterable[str] = "first",
    *,
    policies: Policy | Iterable[Policy] = (),
    tokenizer: Any = None,
    block: int = 1024,
    seed: int = 0,
    n_jobs: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    known: Callable[[list[Tensor], Policy, Run], Progress] | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Losses of one text for every combination of sinks, cache size, positions and kind, and for other policies.

    A cell of this factorial keeps `sinks` first tokens and the last `cache_size - sinks`. What stands in the first
    `sinks` places, BOS included, is its kind: "first", the tokens of the text; "line breaks" (Xiao et al. 2023,
    Table 1); or "random", drawn evenly from the model's vocabulary. Without sinks, kind and positions make no
    difference: that cell is run once for each cache size and stands for several levels.

    Cells run through joblib, inside `joblib.parallel_config(backend="loky" | "dask" | "ray")` on its workers. A loaded
    model travels with every cell; a name or path travels alone, and each worker loads its own and keeps it.

    >>> record = sinkscope.run_ablation(model, ids[:1], sinks=(0, 2), cache_size=16)
    >>> record.policy.values.tolist()
    ['sinks 0+16', 'sinks 2+14']

    Args:
        model: a decoder in eval mode, or what `load` takes: a hub id, a directory, a .gguf file, None for the demo one.
        ids, block, progress, attributes: as in `perplexity`.
        max_memory: bytes that each cell may take beside the weights, as in `perplexity`.
        sinks, cache_size: tokens; one number or several.
        positions: "cache", "original", or both.
        kinds: "first", "line breaks", "random", or several.
        policies: of any class, read beside the combinations over the text as it is.
        tokenizer: finds the line break; the model's own when None, where it is known.
        seed: of the random tokens.
        n_jobs: cells at the same time; as the surrounding `joblib.parallel_config` says, otherwise 1, when None.
        folder: keeps a file for each cell, named by a hash of all that its losses depend on. The same cell is not run
            again, one that was interrupted goes on, and a damaged file is refused.
        known: gives the losses of texts under a policy, in place of reading them here.

    Returns:
        A record as that of `perplexity` with the cells along `policy`, `first_tokens` [policy] their kind. Along
        `level` stand the combinations, and behind them the other policies, whose `level_kind` is empty: `level_cell`,
        the number of the cell, and `level_cache_size`, `level_kind`, `level_positions`, `level_sinks`.

    Raises:
        SinkscopeError: sinks below 0 or not below the cache size, a text too short to fill the largest cache, unknown
            positions or kinds, what is no policy, no tokenizer or no token for line breaks, a model or policy that
            cannot be streamed, a damaged file of a cell.
    """
    levels, seed = _levels(sinks, cache_size, positions, kinds, policies), whole_number(seed, "seed", 0)
    texts, run, source = texts_of(ids), Run(block), ModelSource.of(model)
    largest, shortest = max(level.cache_size for level in levels), min(map(len, texts))
    if shortest < (need := first_evicted(largest) + 1):
        raise SinkscopeError(
            f"a text of {shortest} tokens evicts nothing from a cache of {largest}; give {need} tokens or more, or a "
            "smaller cache_size."
        )
    try:
        source.forget()  # of files that may have changed since
        opened = source.open()
        check_run(opened, texts, run)
        for policy in {repr(level.policy): level.policy for level in levels}.values():
            check_limits(opened, policy, max(map(len, texts)))
        if known is None:
            most = None if max_memory is None else whole_number(max_memory, "max_memory", 1)
            run = Run(fitting_block(opened, texts, [level.policy for level in levels], run, most))
        changed: dict[tuple[str, int], list[Tensor]] = {}
        for kind, count in dict.fromkeys((level.kind, level.sinks) for level in levels if level.kind):
            tokens = 0
            if kind == "line breaks":
                tokens = line_break_token(source.tokenizer() if tokenizer is None else tokenizer)
            elif kind == "random":
                tokens = input_embeddings(opened).num_embeddings
            changed[kind, count] = with_first_tokens(texts, kind, count, tokens, seed)
            for text in changed[kind, count]:
                check_vocabulary(find_anatomy(opened).base, text)
        cells, experiment, own = [], Perplexity(run.block), identity_of(source, opened)
        for level in levels:
            read, setting = changed.get((level.kind, level.sinks), texts), Setting(level.policy)
            settings = own | experiment.settings(None, read, setting)
            cells.append(RecordCell(source, read, experiment, setting, settings, {"experiment": "perplexity"}))
        runs: dict[str, Level] = {}
        for cell, level in zip(cells, levels, strict=True):  # the first level that each stands for
            runs.setdefault(cell.key, level)
        names = [level.name for level in runs.values()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SinkscopeError(f"two policies that differ are called {min(twice)!r}; give one a label of its own.")
        place = None if folder is None else writable_folder(folder, "cells")
        if known is None:
            found = dict(finished_cells(cells, place, n_jobs, progress, title="ablation"))
            finished = {key: _progress(found[key]) for key in runs}
        elif not callable(known):
            raise SinkscopeError(
                f"known={shown(known)} is no function of texts, a policy and a run: give one, or None."
            )
        else:
            first = {cell.key: cell for cell in reversed(cells)}
            finished = {key: known(first[key].texts, first[key].setting.policy, run) for key in runs}
        places = [list(runs).index(cell.key) for cell in cells]
        record = _record(opened, texts, levels, list(runs.values()), [finished[key] for key in runs], places)
    finally:
        source.forget()
    return record.assign_attrs({"kind": "ablation", "block": run.block, "seed": seed} | attributes)


def _progress(cell: Finished) -> Progress:
    """The losses of a cell, as they were read."""
    assert cell.record is not None
    return Progress(torch.from_numpy(cell.record["nll"].values[0]), seconds=float(cell.record["seconds"].values[0]))


def _levels(sinks: Any, cache_size: Any, positions: Any, kinds: Any, policies: Any) -> list[Level]:
    """All combinations, and the other policies behind them."""
    sizes = one_or_several(cache_size, "cache_size", lambda each: whole_number(each, "cache_size", 1))
    words = one_or_several(kinds, "kinds", lambda each: one_of(each, "kinds", KINDS))
    ways = one_or_several(positions, "positions", lambda each: one_of(each, "positions", POSITIONS))
    counts = one_or_several(sinks, "sinks", lambda each: whole_number(each, "sinks", 0))
    if max(counts) >= min(sizes):
        raise SinkscopeError(
            f"sinks={max(counts)} leave no room in cache_size={min(sizes)} for the last tokens; give fewer sinks, or a "
            "larger cache_size."
        )
    levels = [
        # without sinks there is nothing whose position could be counted in two ways
        Level(size, kind, way, count, SinkWindow(count, size - count, way if count else "cache"))
        for size, kind, way, count in product(sizes, words, ways, counts)
    ]
    others = checked_policies(policies)
    if len({policy.name for policy in others}) < len(others):
        raise SinkscopeError("two of the policies have one name; give each once, or a label of its own.")
    for policy in others:
        about = policy.coordinates
        levels.append(Level(int(about["cache_size"]), "", str(about["positions"]), int(about["sinks"]), policy))
    return levels


def with_first_tokens(texts: Sequence[Tensor], kind: str, count: int, tokens: int, seed: int) -> list[Tensor]:
    """The texts [token] with the token `tokens`, or draws from so many, as their first `count` ones, BOS included.

    Is it what the first tokens say that makes them sinks, or that they come first? Table 1 of Xiao et al. (2023) puts
    four line breaks in the place of the first four tokens, and perplexity hardly changes. Random tokens are others for
    each text; those of a smaller count are the first of those of a larger one.
    """
    if kind == "first":
        return list(texts)
    changed = []
    for row, text in enumerate(texts):
        first = torch.full((count,), tokens)
        if kind == "random":
            first = torch.from_numpy(np.random.default_rng([seed, row]).integers(tokens, size=count))
        changed.append(torch.cat([first.to(text), text[count:]]))
    return changed


def _record(
    model: nn.Module, texts: list[Tensor], levels: list[Level], runs: list[Level], finished: list[Progress], places: Any
) -> xr.Dataset:
    """The losses of the runs, and at which place among them each level has its own."""
    record = record_of(model, texts, [level.policy for level in runs], finished)
    del record.attrs["policies"]  # which the coordinates tell
    coordinates: dict[str, Any] = {
        "policy": [level.name for level in runs],
        "first_tokens": ("policy", [level.kind or "first" for level in runs]),
        "level_cell": ("level", places),
    }
    for name in ("cache_size", "kind", "positions", "sinks"):
        coordinates[f"level_{name}"] = ("level", [getattr(level, name) for level in levels])
    return record.assign_coords(coordinates)
