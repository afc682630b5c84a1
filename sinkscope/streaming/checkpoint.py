"""Checkpoints of a long run: what was scored so far and the state to read on from, to the bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.files import check_writable
from sinkscope.models.identity import difference
from sinkscope.tensors import read_tensors, write_tensors

CHECKPOINT = "sinkscope checkpoint 2"
SECONDS = 15.0  # between two checkpoints: a run that is killed loses no more


@dataclass
class Progress:
    """How far a run under one policy is."""

    losses: Tensor  # [sequence, token] float32, nats, NaN where not scored yet
    batch: int = 0  # the batch being read; as many as there are when all is done
    done: int = 0  # how far its reader is
    seconds: float = 0.0
    state: dict[str, Tensor] = field(default_factory=dict)  # what its reader needs to read on


class Checkpoint:
    """One file that holds the progress of a run, or none; a file of other `settings` is refused."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, {name: str(value) for name, value in settings.items()}
        self._written = time.monotonic()

    @property
    def told(self) -> str | None:
        """What is kept of a run that is interrupted, in a sentence; None where nothing is."""
        if self.path is None:
            return None
        return (
            f"interrupted; what was done is kept in {self.path.parent}, and running the same again goes on from there."
        )

    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written > SECONDS

    def write(self, progress: Progress) -> None:
        """Replace the file, as `write_tensors` does."""
        if self.path is None:
            return
        numbers = {"batch": progress.batch, "done": progress.done, "seconds": progress.seconds}
        tensors = {"losses": progress.losses} | {f"state.{name}": held for name, held in progress.state.items()}
        about = {"settings": json.dumps(self.settings), "progress": json.dumps(numbers)}
        write_tensors(self.path, "the checkpoint", CHECKPOINT, tensors, about)
        self._written = time.monotonic()

    def read(self, batches: Sequence[Tensor]) -> Progress | None:
        """What an earlier run over these batches [sequence, token] left, or None.

        Raises:
            SinkscopeError: the file is damaged or of other settings, or the folder cannot be written.
        """
        if self.path is None:
            return None
        check_writable(self.path.parent, "a checkpoint")  # better refused now than after an hour
        if not self.path.exists():
            return None
        advice = "delete it to start this policy again"
        tensors, about = read_tensors(self.path, "the checkpoint", CHECKPOINT, advice)
        if other := difference(json.loads(about["settings"]), self.settings):
            raise SinkscopeError(
                f"the checkpoint {self.path} was made with something else: {other}; go on with what it was, or give "
                "another folder."
            )
        numbers, losses = json.loads(about["progress"]), tensors.pop("losses")
        now = Progress(losses, state={name.removeprefix("state."): held for name, held in tensors.items()}, **numbers)
        if not _is_possible(now, batches):
            raise SinkscopeError(f"the checkpoint {self.path} says it is where no run can be: {numbers}; {advice}.")
        return now


def _is_possible(now: Progress, batches: Sequence[Tensor]) -> bool:
    """Whether a run over these batches can be there."""
    sizes = sum(map(len, batches)), max(batch.shape[1] for batch in batches)
    if now.losses.shape != sizes or now.losses.dtype != torch.float32:
        return False
    if type(now.batch) is not int or type(now.done) is not int or not 0 <= now.batch <= len(batches):
        return False
    longest = batches[now.batch].shape[1] if now.batch < len(batches) else 0
    return 0 <= now.done <= longest and type(now.seconds) is float and 0 <= now.seconds < math.inf
