"""Cells of a sweep: texts read under one policy each, wherever joblib runs them, and kept on disk once finished."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from torch import Tensor, nn
from tqdm.auto import tqdm

from sinkscope.core.measure import PATIENCE
from sinkscope.core.policies import Policy
from sinkscope.errors import SinkscopeError
from sinkscope.streaming.ablation.model_source import ModelSource
from sinkscope.streaming.checkpoint import Checkpoint, Progress
from sinkscope.streaming.perplexity import Run, read_texts, settings_of

ONE_AT_A_TIME = threading.Lock()  # threads of a process share its model, which can carry one policy


@dataclass(frozen=True)
class Cell:
    """Texts under a policy.

    Attributes:
        texts: token ids [token] of each text.
        policy: which keys a query may see.
        settings: all that the losses depend on.
        folder: where it is kept, absolute; None for nowhere.
    """

    texts: list[Tensor]
    policy: Policy
    settings: dict[str, Any]
    folder: Path | None

    @property
    def key(self) -> str:
        """A hash of the settings: cells with the same one have the same losses."""
        plain = json.dumps({name: str(value) for name, value in self.settings.items()}, sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:32]

    @property
    def path(self) -> Path | None:
        """Its file."""
        return None if self.folder is None else self.folder / f"{self.key}.safetensors"

    def checkpoint(self) -> Checkpoint:
        """The file as a checkpoint, whose clock starts now."""
        return Checkpoint(self.path, self.settings)

    def is_finished(self, progress: Progress | None) -> bool:
        """Whether every token that can be scored was."""
        return progress is not None and int(progress.losses.isfinite().sum()) == sum(
            len(text) - 1 for text in self.texts
        )


def run_cells(
    source: ModelSource, cells: Sequence[Cell], run: Run, n_jobs: int | None, shown: bool | None
) -> dict[str, Progress]:
    """The losses of every cell by its key; those of the same key are run once, and those finished on disk not at all.

    Args:
        source: the model.
        cells: what to run.
        run: how.
        n_jobs: cells at the same time; what the surrounding `joblib.parallel_config` says when None.
        shown: whether to show a progress bar; once two seconds have passed when None.

    Raises:
        SinkscopeError: a file of a cell is damaged, which is found before anything runs.
    """
    unique = {cell.key: cell for cell in cells}
    starts = {key: (cell, cell.checkpoint().read()) for key, cell in unique.items()}
    finished = {key: start for key, (cell, start) in starts.items() if start is not None and cell.is_finished(start)}
    waiting = [cell for key, cell in unique.items() if key not in finished]
    bar = tqdm(
        total=len(unique), initial=len(finished), unit="cell", desc="ablation", disable=shown is False,
        delay=PATIENCE * (shown is None),
    )  # fmt: skip
    with bar:
        for key, progress in _parallel(n_jobs)(delayed(_run)(source, cell, run) for cell in waiting):
            path = unique[key].path
            if path is not None and not path.exists():  # the worker's disk is another
                unique[key].checkpoint().write(progress)
            finished[key] = progress
            bar.update()
    return finished


def _parallel(n_jobs: int | None) -> Parallel:
    """One that hands over each cell as it finishes, where its backend can."""
    try:
        return Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    except ValueError:  # backends of the kind of multiprocessing, which Ray's is, hand over all at the end
        return Parallel(n_jobs=n_jobs, batch_size=1)


def _run(source: ModelSource, cell: Cell, run: Run) -> tuple[str, Progress]:
    """What a worker does; it goes on where a checkpoint of the cell stops."""
    with ONE_AT_A_TIME:
        model, stay = _same_model(source, cell, run), cell.checkpoint()
        return cell.key, read_texts(model, cell.texts, cell.policy, run, stay, stay.read(), False)


def _same_model(source: ModelSource, cell: Cell, run: Run) -> nn.Module:
    """The model; loaded again if the one that is held has become another in the meantime."""
    for _ in range(2):
        model = source.open()
        found = settings_of(model, cell.texts, cell.policy, run)
        if all(found[name] == cell.settings[name] for name in ("dtype", "weights")):
            return model
        source.forget()
    raise SinkscopeError(
        f"a worker found other weights in {source.given or 'the demo model'} than this run began with; give every "
        "machine the same files, or pass a loaded model."
    )
