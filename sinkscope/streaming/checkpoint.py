"""Checkpoints of a long run: what was scored so far and the state to read on from, to the bit."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing
from sinkscope.streaming.tensor_files import read_tensors, write_tensors

SECONDS = 15.0  # between two checkpoints: a run that is killed loses no more


@dataclass
class Progress:
    """How far a run under one policy is.

    Attributes:
        losses: [sequence, token] float32, nats, NaN where not scored yet.
        batch: the batch being read; as many as there are when all is done.
        done: how far its reader is.
        seconds: time spent.
        state: what its reader needs to read on.
    """

    losses: Tensor
    batch: int = 0
    done: int = 0
    seconds: float = 0.0
    state: dict[str, Tensor] = field(default_factory=dict)


class Checkpoint:
    """One file that holds the progress of a run; written beside and renamed, so that it is never torn.

    Args:
        path: the file, or None for no checkpoint.
        settings: what the run depends on; a file of other settings is refused.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, {name: str(value) for name, value in settings.items()}
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written > SECONDS

    def write(self, progress: Progress) -> None:
        """Replace the file.

        Raises:
            SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
        """
        if self.path is None:
            return
        numbers = {"batch": progress.batch, "done": progress.done, "seconds": progress.seconds}
        tensors = {"losses": progress.losses} | {f"state.{name}": held for name, held in progress.state.items()}
        about = {"settings": json.dumps(self.settings), "progress": json.dumps(numbers)}
        write_tensors(self.path, "the checkpoint", tensors, about)
        self._written = time.monotonic()

    def read(self) -> Progress | None:
        """What an earlier run left, or None.

        Raises:
            SinkscopeError: the file is damaged or of other settings, or the folder cannot be written.
        """
        if self.path is None:
            return None
        with replacing(self.path.with_name(".writable"), "a checkpoint") as trial:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trial.touch()  # better refused now than after an hour
        self.path.with_name(".writable").unlink(missing_ok=True)
        if not self.path.exists():
            return None
        tensors, about = read_tensors(self.path, "the checkpoint", "delete it to start this policy again")
        settings, numbers = json.loads(about["settings"]), json.loads(about["progress"])
        other = {name for name in settings.keys() | self.settings if settings.get(name) != self.settings.get(name)}
        if other:
            name = sorted(other)[0]
            raise SinkscopeError(
                f"the checkpoint {self.path} was made with {name} = {settings.get(name)}, and now it is "
                f"{self.settings.get(name)}; go on with those settings, or give another folder."
            )
        losses = tensors.pop("losses")
        state = {name.removeprefix("state."): tensor for name, tensor in tensors.items()}
        return Progress(losses, state=state, **numbers)
