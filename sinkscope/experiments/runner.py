"""Long experiments as cells, run wherever joblib runs them, and kept on disk under a hash of all that they depend on.

The same cell is never run twice, one that was interrupted goes on where its file stops, and a damaged file is refused:
a result that was relied on once should not change unseen.
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from joblib import Parallel, delayed
from torch import nn

from sinkscope.definition import check_resumable
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.run_folder import key_of, settings_text
from sinkscope.hf.loading import load
from sinkscope.interrupts import saying
from sinkscope.models.surroundings import check_surroundings, surroundings
from sinkscope.progress import progress_bar

Result = TypeVar("Result")
Advance = Callable[[int], Any]  # told how many more steps of a cell are done
BARS: dict[str, Any] = {}  # of this process, by a ticket that is worth nothing to a worker elsewhere
DEATHS = {"BrokenProcessPool", "KilledWorker", "RayActorError", "WorkerCrashedError"}  # of loky, Dask and Ray


class Cell(ABC, Generic[Result]):
    """One part of an experiment, which can be run alone and sent to a worker."""

    name: str = ""  # what a progress bar calls it while it runs; empty where it need not say
    size: int = 1  # in steps of the progress bar
    settings: dict[str, Any]  # all that the result depends on

    @abstractmethod
    def read(self, path: Path | None) -> Result | None:
        """What an earlier run left whole, or None; SinkscopeError for a file that is damaged or of other settings."""

    @abstractmethod
    def run(self, path: Path | None, advance: Advance) -> Result:
        """Run it, from where its file stops, and keep the result there."""

    @abstractmethod
    def keep(self, result: Result, path: Path) -> None:
        """Write the result to its file."""

    @property
    def settings_text(self) -> str:
        """The settings as JSON."""
        return settings_text(self.settings)

    @property
    def key(self) -> str:
        """A hash of the settings: cells with the same one have the same result."""
        return key_of(self.settings_text)

    def path(self, folder: Path | None) -> Path | None:
        """Its file in a folder; None where nothing is kept. SinkscopeError where no file may stand for its settings."""
        if folder is None:
            return None
        check_resumable(self.settings)
        return folder / f"{self.key}.safetensors"


def finished_cells(
    cells: Sequence[Cell[Result]],
    folder: Path | None,
    n_jobs: int | None = None,
    progress: bool | None = None,
    unit: str = "cell",
    title: str | None = None,
) -> Iterator[tuple[str, Result]]:
    """The key and the result of every cell as it finishes, those finished on disk first, which are not run again.

    Of cells with the same key one is run.

    Args:
        folder: where they are kept, nowhere when None; a damaged file is refused before anything runs.
        n_jobs: cells at the same time; what the surrounding `joblib.parallel_config` says when None, otherwise 1.
        progress, unit, title: of the bar: whether it is shown, what it counts, and what it says.

    Raises:
        SinkscopeError: a worker died; what was finished by then is kept. A worker computes with other things than this
            process, as where a function of torch was replaced here.
    """
    unique = {cell.key: cell for cell in cells}
    known = {key: cell.read(cell.path(folder)) for key, cell in unique.items()}
    waiting = [unique[key] for key, result in known.items() if result is None]
    total, todo = (sum(cell.size for cell in some) for some in (unique.values(), waiting))
    ticket, done = uuid.uuid4().hex, len(unique) - len(waiting)
    told_kept = f"interrupted; what is finished is kept in {folder}, and running the same again goes on from there."
    bar = progress_bar(total, unit, progress, initial=total - todo, desc=title)
    with saying(None if folder is None else told_kept), bar:
        BARS[ticket] = bar
        try:
            yield from ((key, result) for key, result in known.items() if result is not None)
            known.clear()
            around = surroundings()
            jobs = (delayed(_run)(cell, cell.path(folder), ticket, around) for cell in waiting)
            for key, result, told in _parallel(check_jobs(n_jobs))(jobs):
                path, done = unique[key].path(folder), done + 1
                if path is not None and not path.exists():  # the worker's disk is another
                    unique[key].keep(result, path)
                bar.update(unique[key].size - told)
                yield key, result
        except Exception as problem:
            if not is_death(problem):
                raise
            kept = "nothing of it is kept" if folder is None else f"what is finished is kept in {folder}"
            advice = "give folder= to keep it" if folder is None else "the same call goes on from there"
            raise SinkscopeError(
                f"a worker died in the middle of a {unit} (killed, out of memory, or by the code it ran) when at least "
                f"{done} of {len(unique)} were finished: {kept}; {advice}, with fewer jobs if memory was short."
            ) from problem
        finally:
            del BARS[ticket]


def is_death(problem: Exception) -> bool:
    """Whether a backend says by an exception that a worker is no longer there."""
    return bool({cls.__name__ for cls in type(problem).__mro__} & DEATHS)


def _parallel(n_jobs: int | None) -> Parallel:
    """One that hands over each cell as it finishes, where its backend can."""
    try:
        return Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    except ValueError:  # backends of the kind of multiprocessing, which Ray's is, hand over all at the end
        return Parallel(n_jobs=n_jobs, batch_size=1)


def check_jobs(n_jobs: int | None) -> int | None:
    """How many cells run at the same time, as joblib counts; SinkscopeError for 0."""
    if n_jobs == 0:
        raise SinkscopeError("n_jobs=0 runs nothing: give 1 or more, or -1 for as many as there are cores.")
    return n_jobs


def _run(cell: Cell[Result], path: Path | None, ticket: str, around: dict[str, str]) -> tuple[str, Result, int]:
    """What a worker does: the key of the cell, its result, and how many steps the bar was told of meanwhile."""
    check_surroundings(around)
    bar, told = BARS.get(ticket), 0

    def advance(steps: int) -> None:
        nonlocal told
        if bar is not None:
            bar.update(steps)
            told += steps

    if bar is not None and cell.name:
        bar.set_description(cell.name)
    return cell.key, cell.run(path, advance), told


@dataclass(frozen=True)
class ModelSource:
    """What travels to a worker: a loaded model with its weights, or what `sinkscope.load` takes, alone."""

    given: nn.Module | str | None
    options: tuple[tuple[str, Any], ...] = ()  # of `load`, such as ("device", "cuda")

    @classmethod
    def of(cls, model: Any, **options: Any) -> ModelSource:
        """A path is made absolute, as workers may stand in another folder."""
        told = tuple(sorted(options.items()))
        if model is None or isinstance(model, nn.Module):
            return cls(model, told)
        if not isinstance(model, (str, os.PathLike)):
            raise SinkscopeError(
                f"A model is a name, a path or a torch module, not a {type(model).__name__}: see sinkscope.load."
            )
        path = os.path.expanduser(model)
        return cls(os.path.realpath(path) if os.path.exists(path) else os.fspath(model), told)

    @property
    def is_named(self) -> bool:
        """Whether it is loaded where it is needed, and nobody else holds it."""
        return not isinstance(self.given, nn.Module)

    def open(self) -> nn.Module:
        """The model, of which one is held per process; SinkscopeError where it cannot be loaded."""
        return self.given if isinstance(self.given, nn.Module) else _held(self.given, self.options)[0]

    def tokenizer(self) -> Any:
        """Its tokenizer; None where it is not to be found."""
        return load(self.given)[1] if isinstance(self.given, nn.Module) else _held(self.given, self.options)[1]

    def forget(self) -> None:
        """Hold no model in this process any longer."""
        _held.cache_clear()


@lru_cache(maxsize=1)
def _held(place: str | None, options: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    return load(place, **dict(options))
