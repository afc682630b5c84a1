"""Training runs as cells: a hash of the settings names the file of each, and one that is finished is not run again."""

from __future__ import annotations

import datetime
import os
import platform
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sinkscope
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.runner import Advance, Cell, run_cells
from sinkscope.files import writable_folder
from sinkscope.hf.gguf import cache_directory
from sinkscope.lab.decoder import Arm
from sinkscope.streaming.checkpoint import read_tensors, write_tensors

ADVICE = "delete it to train this run again"


class TrainingRun(Cell[dict[str, Tensor]]):
    """One model trained once: one arm and one seed, which decides the first weights and what is trained on."""

    arm: Arm
    seed: int
    schedule: Any  # has steps

    @abstractmethod
    def train(self, advance: Advance) -> dict[str, Tensor]:
        """The result, by name."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def size(self) -> int:  # type: ignore[override]
        return int(self.schedule.steps)

    def read(self, path: Path | None) -> dict[str, Tensor] | None:
        if path is None or not path.exists():
            return None
        tensors, about = read_tensors(path, "the training run", ADVICE)
        if about.get("settings") != self.settings_text:
            raise SinkscopeError(f"the training run {path} is of other settings than its name says; {ADVICE}.")
        return tensors

    def run(self, path: Path | None, advance: Advance) -> dict[str, Tensor]:
        begun = time.perf_counter()
        result = self.train(advance)
        result["seconds"] = torch.tensor(time.perf_counter() - begun, dtype=torch.float64)
        if path is not None:
            self.keep(result, path)
        return result

    def keep(self, result: dict[str, Tensor], path: Path) -> None:
        write_tensors(path, "the training run", result, {"settings": self.settings_text})

    def check_finite(self, loss: Tensor, step: int) -> None:
        """Raise SinkscopeError when training has diverged."""
        if not bool(loss.isfinite()):
            raise SinkscopeError(
                f"training the arm {self.arm.name!r} with seed {self.seed} went astray: its loss at step {step} is not "
                "finite; give a lower learning_rate."
            )


def run_all(
    runs: Sequence[TrainingRun], folder: str | os.PathLike[str] | None, n_jobs: int | None, progress: bool | None
) -> list[dict[str, Tensor]]:
    """The results of all runs; those finished on disk are not run again.

    Args:
        runs: each of its own settings.
        folder: where they are kept; in the user's cache folder when None.
        n_jobs, progress: as in `run_cells`.

    Raises:
        SinkscopeError: a file of a run is damaged, or the folder cannot be written, which is found before anything
            runs.
    """
    place = writable_folder(cache_directory() / "lab" if folder is None else folder, "training runs")
    results = run_cells(runs, place, n_jobs, progress, unit="step")
    return [results[run.key] for run in runs]


def seeds_of(given: int | Iterable[int]) -> list[int]:
    """Seeds, each once, in the order given."""
    seeds = [given] if isinstance(given, int) else list(given)
    if not seeds:
        raise SinkscopeError("no seeds were given; give one or more, three or more for intervals.")
    return list(dict.fromkeys(whole_number(seed, "seed", 0) for seed in seeds))


def device_of(name: str) -> str:
    """A device that is there."""
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError, TypeError) as problem:
        raise SinkscopeError(f"device={name!r} cannot be used here ({str(problem).splitlines()[0]}).") from problem


def heads_width(width: int, heads: int, even: bool = False) -> int:
    """A width that its heads can share; `even`, in pairs for rotary positions."""
    if whole_number(width, "width", 1) % (heads * (1 + even)):
        raise SinkscopeError(
            f"width={width} cannot be shared among heads={heads}: give a multiple of {heads * (1 + even)}."
        )
    return width


def run_attributes(arms: Sequence[Arm], seeds: Sequence[int], device: str) -> dict[str, Any]:
    """What was trained, with which versions, and when."""
    return {
        "dtype": "float32",
        "device": device,
        "arms": "; ".join(map(repr, arms)),
        "seeds": ", ".join(map(str, seeds)),
        "sinkscope": sinkscope.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
