"""A sweep: every cell of a grid, run wherever joblib runs it, each kept under a hash of all that it follows from.

First each model is opened where the cells will run. It encodes the texts, says which cells it can take, and gives what
their numbers follow from. So the process that asks for a sweep loads no model, and needs no GPU.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor

from sinkscope.errors import SinkscopeError, warn
from sinkscope.experiments.cells import ONE_AT_A_TIME, Experiment, Finished, RecordCell, Setting, identity_of
from sinkscope.experiments.grid import Grid, Segment
from sinkscope.experiments.runner import ModelSource, check_jobs, finished_cells, is_death
from sinkscope.files import writable_folder
from sinkscope.models.surroundings import check_surroundings, surroundings

CELLS = "cells"  # the folder in a run folder


class Point(NamedTuple):
    """A place in a grid, by name."""

    experiment: str
    model: str
    text: str
    setting: Setting

    @property
    def about(self) -> dict[str, Any]:
        """Its levels, as the table and the card of its cell have them."""
        policy, told = self.setting.policy, self.setting.policy.coordinates
        return {
            "experiment": self.experiment,
            "model": self.model,
            "text": self.text,
            "policy": policy.name,
            "policy_kind": told["policy_kind"],
            "sinks": self.setting.sinks or told["sinks"],
            "cache_size": told["cache_size"],
            "positions": told["positions"],
            "seed": self.setting.seed,
        }


class Planned(NamedTuple):
    """A place in a grid as a model finds it."""

    point: Point
    settings: dict[str, Any]  # what its numbers follow from
    notes: list[str]
    refusal: str = ""  # why the model cannot take it


def run_sweep(
    grid: Any,
    folder: str | os.PathLike[str] | None = None,
    *,
    n_jobs: int | None = None,
    progress: bool | None = None,
    summary: Callable[[xr.Dataset], list[dict[str, Any]]] | None = None,
    keep_records: bool = False,
) -> Iterator[tuple[Point, RecordCell, Finished]]:
    """Every place of a grid with its cell, as it finishes.

    Args:
        grid: a `Grid`, a mapping with its arguments, or the path of a YAML file of one.
        folder: a run folder; what is finished there is not run again. Nothing is kept when None.
        n_jobs: cells at the same time; as the surrounding `joblib.parallel_config` says, otherwise 1, when None.
        progress: whether to show a bar; once two seconds have passed when None.
        summary: makes the rows of a cell from its record.
        keep_records: whether to give records also of cells that are on disk.

    Raises:
        SinkscopeError: a fault in the grid; an experiment that no model can take; a model or text that cannot be read;
            a damaged cell; a worker that died; and, once all others have finished, a cell that could not be run.
    """
    grid, n_jobs = Grid.of(grid), check_jobs(n_jobs)
    place = None if folder is None else writable_folder(Path(folder) / CELLS, "cells")
    texts, planned = _plan(grid, n_jobs)
    cells: dict[str, RecordCell] = {}  # `writable_folder` has cleared away what killed runs left half-made
    points: dict[str, list[Point]] = {}
    for point, settings, _, refusal in planned:
        if refusal:
            continue
        experiment = grid.done[point.experiment]
        read, source = texts[point.model, point.text], grid.sources[point.model]
        cell = RecordCell(
            source, read, experiment, point.setting, settings, point.about, summary, keep_records, is_forgiving=True
        )
        cells.setdefault(cell.key, cell)
        points.setdefault(cell.key, []).append(point)
    failed: list[tuple[Point, str]] = []
    try:
        for key, finished in finished_cells(_order(list(cells.values())), place, n_jobs, progress, title="sweep"):
            if finished.problem:
                failed.append((points[key][0], finished.problem))
                continue
            yield from ((point, cells[key], finished) for point in points[key])
    finally:
        for source in grid.sources.values():
            source.forget()
    if failed:
        point, problem = failed[0]
        raise SinkscopeError(
            f"{len(failed)} of {len(cells)} cells could not be run, {point.experiment} of {point.model} on "
            f"{point.text} under `{point.setting.policy.name}` first, because {problem.rstrip('.')}; the others are "
            "finished."
        )


def _order(cells: list[RecordCell]) -> list[RecordCell]:
    """The cells model by model, so that a worker loads each once, and in another order each time, so that several
    writers seldom run the same cell at the same time."""
    groups: dict[int, list[RecordCell]] = {}
    for cell in cells:
        groups.setdefault(id(cell.source), []).append(cell)
    for group in groups.values():
        random.SystemRandom().shuffle(group)
    return [cell for group in groups.values() for cell in group]


def _plan(grid: Grid, n_jobs: int | None) -> tuple[dict[tuple[str, str], list[Tensor]], list[Planned]]:
    """The texts [token] by model and text, and every place of the grid in its order."""
    axes = surroundings(), grid.segments, grid.done, grid.ways, grid.counts, grid.draws
    named = {name: source for name, source in grid.sources.items() if source.is_named}
    jobs = [delayed(_planned)(name, source, *axes) for name, source in named.items()]
    if jobs:  # the other workers import what they need meanwhile
        jobs += [delayed(_ready)() for _ in range(effective_n_jobs(n_jobs) - len(jobs))]
    try:
        elsewhere = dict(zip(named, Parallel(n_jobs=n_jobs, batch_size=1)(jobs), strict=False)) if jobs else {}
    except Exception as problem:
        if not is_death(problem):
            raise
        raise SinkscopeError(
            "a worker died while it opened a model of this grid (killed, or out of memory), before any cell was run; "
            "give workers more memory, or fewer jobs."
        ) from problem
    # what is told of a loaded model follows from the code of this process
    found = {name: elsewhere.get(name) or _planned(name, source, *axes) for name, source in grid.sources.items()}
    texts = {(name, text): ids for name, (read, _) in found.items() for text, ids in read.items()}
    planned = [each for _, some in found.values() for each in some]
    refused: dict[tuple[str, str], list[Planned]] = {}
    for each in planned:
        refused.setdefault((each.point.experiment, each.point.setting.policy.name), []).append(each)
    for (experiment, policy), some in refused.items():
        reasons = {each.point.model: each.refusal for each in some if each.refusal}
        if len(some) == sum(bool(each.refusal) for each in some):
            raise SinkscopeError(f"no model of this grid can take {experiment} under `{policy}`: {some[0].refusal}")
        for model, reason in reasons.items():
            warn(f"{experiment} under `{policy}` is left out where {model} cannot take it: {reason}")
    for note in dict.fromkeys(f"{each.point.model}: {note}" for each in planned for note in each.notes):
        warn(note)
    return texts, planned


def _ready() -> None:
    """Nothing: to be asked for it, a worker has imported this module."""


def _planned(
    name: str,
    source: ModelSource,
    around: dict[str, str],
    segments: dict[str, Any],
    experiments: dict[str, Experiment],
    *axes: Any,
) -> tuple[dict[str, list[Tensor]], list[Planned]]:
    """What a worker finds out about a model: its texts, and all places of the grid that it is at."""
    with ONE_AT_A_TIME:
        check_surroundings(around)
        source.forget()  # a worker outlives a sweep, and its files may have changed since
        model, read, found = source.open(), {}, []
        known = identity_of(source, model)
        has_words = any(isinstance(each, Segment) for each in segments.values())
        is_asked = has_words or any(each.reads_words for each in experiments.values())
        tokenizer = source.tokenizer() if is_asked else None
        for text, segment in segments.items():
            read[text] = segment.read(tokenizer) if isinstance(segment, Segment) else segment
        for kind, experiment in experiments.items():
            for text, ids in read.items():
                for setting in experiment.settings_over(*axes):
                    point = Point(kind, name, text, setting)
                    try:
                        notes = experiment.check(model, tokenizer, ids, setting)
                        settings = known | experiment.settings(tokenizer, ids, setting)
                        found.append(Planned(point, settings, notes))
                    except SinkscopeError as problem:
                        found.append(Planned(point, {}, [], str(problem)))
        return read, found
