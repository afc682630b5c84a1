"""Training runs: several at a time, each kept on disk once it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor
from tqdm.auto import tqdm

from sinkscope.core.measure import PATIENCE
from sinkscope.data.converted import cache_directory
from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing
from sinkscope.streaming.tensor_files import read_tensors, write_tensors

Advance = Callable[[int], Any]
"""Told how many more steps are done."""

ADVICE = "delete it to train this run again"


class TrainingRun(ABC):
    """One model trained once."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a progress bar calls it."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many it takes."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the result depends on."""

    @abstractmethod
    def train(self, advance: Advance) -> dict[str, Tensor]:
        """The result, by name."""

    @property
    def key(self) -> str:
        """A hash of the settings."""
        return hashlib.sha256(self._told().encode()).hexdigest()[:32]

    def path(self, folder: Path) -> Path:
        """Its file in a folder."""
        return folder / f"{self.key}.safetensors"

    def finished(self, folder: Path) -> dict[str, Tensor] | None:
        """What an earlier run left in a folder, or None.

        Raises:
            SinkscopeError: its file is damaged, or of other settings.
        """
        path = self.path(folder)
        if not path.exists():
            return None
        tensors, about = read_tensors(path, "the training run", ADVICE)
        if about.get("settings") != self._told():
            raise SinkscopeError(f"the training run {path} is of other settings than its name says; {ADVICE}.")
        return tensors

    def run(self, folder: Path, advance: Advance | None) -> dict[str, Tensor]:
        """Train, and keep the result."""
        begun = time.perf_counter()
        found = self.train(advance or (lambda _: None))
        found["seconds"] = torch.tensor(time.perf_counter() - begun, dtype=torch.float64)
        self.keep(found, folder)
        return found

    def keep(self, found: dict[str, Tensor], folder: Path) -> None:
        write_tensors(self.path(folder), "the training run", found, {"settings": self._told()})

    def _told(self) -> str:
        return json.dumps({name: str(value) for name, value in self.settings.items()}, sort_keys=True)


def run_all(
    runs: Sequence[TrainingRun],
    folder: str | os.PathLike[str] | None,
    n_jobs: int | None,
    shown: bool | None,
) -> list[dict[str, Tensor]]:
    """The results of all runs; those finished on disk are not run again.

    Args:
        runs: each of its own settings.
        folder: where they are kept; in the user's cache folder when None.
        n_jobs: runs at the same time; what the surrounding `joblib.parallel_config` says when None.
        shown: whether to show a progress bar; once two seconds have passed when None.

    Raises:
        SinkscopeError: a file of a run is damaged, or the folder cannot be written, which is found before anything
            runs.
    """
    place = _made(cache_directory() / "lab" if folder is None else Path(folder).expanduser().resolve())
    found = [run.finished(place) for run in runs]
    waiting = [number for number, result in enumerate(found) if result is None]
    total, todo = sum(run.steps for run in runs), sum(runs[number].steps for number in waiting)
    delay = PATIENCE * (shown is None)
    with tqdm(total=total, initial=total - todo, unit="step", disable=shown is False, delay=delay) as bar:
        here = effective_n_jobs(n_jobs) == 1  # a worker cannot move a bar of this process

        def train(number: int) -> dict[str, Tensor]:
            bar.set_description(runs[number].name)
            return runs[number].run(place, bar.update)

        if here:
            results = map(train, waiting)
        else:
            results = Parallel(n_jobs=n_jobs, return_as="generator", batch_size=1)(
                delayed(runs[number].run)(place, None) for number in waiting
            )
        for number, result in zip(waiting, results, strict=True):
            found[number] = result
            if not here:
                bar.update(runs[number].steps)
            if not runs[number].path(place).exists():  # the worker's disk is another
                runs[number].keep(result, place)
    return [result for result in found if result is not None]


def _made(folder: Path) -> Path:
    """The folder, which can be written to before anything has run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(f"folder={str(folder)!r} cannot be made: {problem.strerror}; give another.") from problem
    trial = folder / ".writable"
    with replacing(trial, "training runs") as partial:  # better refused now than after an hour
        partial.touch()
    trial.unlink(missing_ok=True)
    return folder
