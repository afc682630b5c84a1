"""Checkpoints of a long run: what was scored so far and the state to read on from, to the bit."""

from __future__ import annotations

import json
import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing, write_text


def write_tensors(path: Path, what: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors and texts about them; an older file is replaced in one step.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path, what) as partial:
        try:
            save_file(stored, partial, metadata=about | {"checksum": _checksum(stored)})
        except SafetensorError as problem:  # how it reports a full disk
            raise OSError(str(problem)) from problem
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path, what: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a file that `write_tensors` wrote.

    Raises:
        SinkscopeError: another kind of file, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as problem:
        raise SinkscopeError(f"{what} {path} is damaged or torn ({problem}); {advice}.") from problem
    if "checksum" not in about:
        raise SinkscopeError(f"{path} is a safetensors file, but not one that sinkscope wrote; {advice}.")
    if about.pop("checksum") != _checksum(tensors):
        raise SinkscopeError(f"{what} {path} is damaged: its numbers are not those that were saved; {advice}.")
    return tensors, about


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        numbers = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(numbers.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


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
        write_tensors(self.path, "the checkpoint", tensors, about)
        self._written = time.monotonic()

    def read(self) -> Progress | None:
        """What an earlier run left, or None.

        Raises:
            SinkscopeError: the file is damaged or of other settings, or the folder cannot be written.
        """
        if self.path is None:
            return None
        trial = self.path.with_name(".writable")
        write_text(trial, "", "a checkpoint")  # better refused now than after an hour
        trial.unlink(missing_ok=True)
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
